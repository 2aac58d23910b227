"""The fingerprint follows the numbers, not the files they stand in."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finlora.bases.tensors import INDEX_FILE, WEIGHTS_FILE, fingerprint
from finlora.errors import BaseModelError


def test_is_independent_of_sharding(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert (tmp_path / "sharded" / INDEX_FILE).is_file()
    assert fingerprint(tmp_path / "sharded") == fingerprint(llama)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors[name].view(-1)[0].add_(1e-3),
        lambda tensors, name: tensors.update({name: tensors[name].to(torch.bfloat16)}),
        lambda tensors, name: tensors.update({name: tensors[name].reshape(-1, 1)}),
        lambda tensors, name: tensors.update({name + "x": tensors.pop(name)}),
    ],
    ids=["value", "type", "shape", "name"],
)
def test_follows_every_change(
    llama: Path, change: Callable[[dict[str, torch.Tensor], str], object]
) -> None:
    before = fingerprint(llama)
    tensors = load_file(llama / WEIGHTS_FILE)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, "model.norm.weight")
    save_file(tensors, llama / WEIGHTS_FILE)
    assert fingerprint(llama) != before


@pytest.mark.parametrize(
    "content",
    [
        lambda old: old[:-1],
        lambda old: old[:20],
        lambda old: b"",
        lambda old: b"\xff" * 16,
        lambda old: old + b"x",
        lambda old: (2).to_bytes(8, "little") + b"[]",
        lambda old: (13).to_bytes(8, "little") + b'{"a": {"b":1}}'[:13],
    ],
    ids=["cut", "cut in header", "empty", "garbage", "appended", "no object", "bad entry"],
)
def test_broken_files_are_refused(llama: Path, content: Callable[[bytes], bytes]) -> None:
    file = llama / WEIGHTS_FILE
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(BaseModelError, match=WEIGHTS_FILE):
        fingerprint(llama)


def test_pickles_are_refused(llama: Path) -> None:
    (llama / WEIGHTS_FILE).rename(llama / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="safetensors"):
        fingerprint(llama)


def test_an_index_beside_the_single_file_is_not_looked_at(llama: Path, tmp_path: Path) -> None:
    before = fingerprint(llama)
    shard = {name: tensor * 2 for name, tensor in load_file(llama / WEIGHTS_FILE).items()}
    save_file(shard, llama / "shard.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(shard, "shard.safetensors")}
    (llama / INDEX_FILE).write_text(json.dumps(index))
    assert fingerprint(llama) == before
    # It is what is served.
    served = AutoModelForCausalLM.from_pretrained(llama)
    served.save_pretrained(tmp_path / "served")
    assert fingerprint(tmp_path / "served") == before
    (llama / WEIGHTS_FILE).unlink()
    assert fingerprint(llama) != before


def test_a_broken_index_is_refused(llama: Path) -> None:
    (llama / WEIGHTS_FILE).rename(llama / "shard.safetensors")
    (llama / INDEX_FILE).write_text(json.dumps({"weight_map": ["x"]}))
    with pytest.raises(BaseModelError, match="index"):
        fingerprint(llama)


def test_the_index_cannot_lead_out_of_the_folder(llama: Path) -> None:
    (llama / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    (llama / WEIGHTS_FILE).rename(llama.parent / "secret.safetensors")
    with pytest.raises(BaseModelError, match=r"lacks secret\.safetensors"):
        fingerprint(llama)
