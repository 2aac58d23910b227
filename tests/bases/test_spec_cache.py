"""A base's facts are computed once, and again as soon as a file of it changes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finlora.bases.spec import BaseSpec, LinearShape
from finlora.bases.spec_cache import SOURCE_FILE, all_specs, cached_spec, remembered_spec
from finlora.errors import BaseModelError

SPEC = BaseSpec(
    name="computed",
    architecture="LlamaForCausalLM",
    fingerprint="f" * 64,
    tokenizer_hash="a" * 64,
    max_position_embeddings=512,
    eos_token_ids=(2, 0),
    linear_layers={"model.layers.0.self_attn.q_proj": LinearShape(64, 128)},
)


def unexpected(folder: Path) -> BaseSpec:
    raise AssertionError(f"{folder} is computed again")


@pytest.fixture
def remembered(llama: Path, empty_cache: Path) -> BaseSpec:
    return remembered_spec(llama, "my base", lambda folder: SPEC)


def test_is_read_back_whole(llama: Path, remembered: BaseSpec) -> None:
    assert remembered_spec(llama, "my base", unexpected) == remembered
    spec = cached_spec(str(llama))
    assert spec is not None
    assert spec.name == "tiny-llama"
    assert spec.linear_layers == SPEC.linear_layers
    assert spec.eos_token_ids == (2, 0)
    assert list(all_specs()) == [(llama, remembered)]


def test_an_unknown_base_has_none(llama: Path, empty_cache: Path) -> None:
    assert cached_spec(str(llama)) is None
    assert cached_spec("nothing") is None


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_is_noticed(llama: Path, remembered: BaseSpec, name: str) -> None:
    stat = (llama / name).stat()
    os.utime(llama / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cached_spec(str(llama)) is None
    assert list(all_specs()) == []
    assert remembered_spec(llama, "again", lambda folder: SPEC).name == "again"
    assert cached_spec(str(llama)) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.unlink(),
    ],
    ids=["cut", "other", "missing"],
)
@pytest.mark.parametrize("name", ["base.json", SOURCE_FILE])
def test_a_damaged_entry_is_computed_again(
    llama: Path, remembered: BaseSpec, empty_cache: Path, name: str, damage: Callable[[Path], None]
) -> None:
    (file,) = empty_cache.glob(f"specs/*/{name}")
    damage(file)
    assert cached_spec(str(llama)) is None
    assert remembered_spec(llama, "my base", lambda folder: SPEC) == remembered
    assert json.loads(file.read_text())


def test_a_base_that_changes_while_it_is_read_is_refused(llama: Path, empty_cache: Path) -> None:
    def compute(folder: Path) -> BaseSpec:
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"the rest of a copy")
        return SPEC

    with pytest.raises(BaseModelError, match="changed while it was read"):
        remembered_spec(llama, "copied", compute)
    assert cached_spec(str(llama)) is None
    assert remembered_spec(llama, "copied", lambda folder: SPEC).name == "copied"
