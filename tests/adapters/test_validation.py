"""Which weights become layers, and what each refusal says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from finlora.adapters.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoRAConfig,
)
from finlora.adapters.peft_config import parse_config
from finlora.adapters.validation import (
    LoRALayer,
    max_weights_bytes,
    parse_weights,
)
from finlora.bases.spec import BaseSpec
from finlora.errors import AdapterError, AdapterIncompatibleError, AdapterLoadError
from tests.adapters.peft_folders import ALL_LINEAR, key_of, raw_safetensors, read_tensors

Q_PROJ = "model.layers.0.self_attn.q_proj"
UP_PROJ = "model.layers.1.mlp.up_proj"
CONFIG = LoRAConfig(r=4, lora_alpha=8)
Tensors = dict[str, torch.Tensor]


def parse(folder: Path, spec: BaseSpec, max_rank: int = 16) -> dict[str, LoRALayer]:
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    return parse_weights(config, (folder / WEIGHTS_FILE).read_bytes(), spec, max_rank=max_rank)


def parse_tensors(tensors: Tensors, spec: BaseSpec, config: LoRAConfig = CONFIG) -> None:
    parse_weights(config, save(tensors), spec, max_rank=16)


@pytest.fixture
def tensors(peft_folders: dict[str, Path]) -> Tensors:
    return read_tensors(peft_folders["lora"])


def test_every_layer_that_peft_saved_is_found(
    peft_folders: dict[str, Path], spec: BaseSpec, tensors: Tensors
) -> None:
    layers = parse(peft_folders["lora"], spec)

    assert layers.keys() == spec.linear_layers.keys()
    assert len(layers) == 2 * len(ALL_LINEAR)
    assert torch.equal(layers[Q_PROJ].a, tensors[key_of(Q_PROJ, "lora_A")])
    assert torch.equal(layers[Q_PROJ].b, tensors[key_of(Q_PROJ, "lora_B")])
    assert layers[Q_PROJ].magnitude is None
    assert layers[Q_PROJ].scaling == 2.0


def test_ranks_and_scalings_follow_the_patterns(
    peft_folders: dict[str, Path], spec: BaseSpec
) -> None:
    layers = parse(peft_folders["patterns"], spec)

    assert (layers[Q_PROJ].rank, layers[Q_PROJ].scaling) == (8, 4 / 8)
    assert (layers[UP_PROJ].rank, layers[UP_PROJ].scaling) == (2, 8 / 2)
    assert parse(peft_folders["rslora"], spec)[Q_PROJ].scaling == 8 / 4**0.5


def test_dora_has_magnitudes_and_any_subset_of_layers(
    peft_folders: dict[str, Path], spec: BaseSpec
) -> None:
    layers = parse(peft_folders["dora"], spec)

    assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "down_proj"}
    assert all(len(list(layer.tensors())) == 3 for layer in layers.values())


def test_keys_with_the_adapter_name_in_them_are_accepted(tensors: Tensors, spec: BaseSpec) -> None:
    renamed = {key.replace(".weight", ".default.weight"): t for key, t in tensors.items()}

    assert len(parse_weights(CONFIG, save(renamed), spec, max_rank=16)) == 14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_stored_type_is_kept(tensors: Tensors, spec: BaseSpec, dtype: torch.dtype) -> None:
    content = save({key: tensor.to(dtype) for key, tensor in tensors.items()})

    assert parse_weights(CONFIG, content, spec, max_rank=16)[Q_PROJ].a.dtype == dtype


def _set(module: str, role: str, value: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key_of(module, role): value})


def _fill(role: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for key in tensors:
            if role in key:
                tensors[key] = torch.full_like(tensors[key], value)

    return change


def _spoil(value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[key_of(UP_PROJ, "lora_B")][-1, -1] = value

    return change


def _drop(module: str, role: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[key_of(module, role)]

    return change


def _split_effect(tensors: Tensors) -> None:
    """A and B are both set, but never for the same rank index."""
    for key, tensor in tensors.items():
        if "lora_A" in key:
            tensor[2:] = 0
        else:
            tensor[:, :2] = 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_spoil(float("nan")), f"{UP_PROJ}: B holds values that are not finite"),
        (_spoil(float("inf")), f"{UP_PROJ}: B holds values that are not finite"),
        (_spoil(1e6), f"{UP_PROJ}: B holds values beyond 65504"),
        (_fill("lora_B", 0.0), "changes nothing"),
        (_fill("lora_A", 0.0), "changes nothing"),
        (_split_effect, "changes nothing"),
        (_drop(Q_PROJ, "lora_A"), f"{Q_PROJ}: has B, must have A, B"),
        (_drop(Q_PROJ, "lora_B"), f"{Q_PROJ}: has A, must have A, B"),
        (_set(Q_PROJ, "lora_magnitude_vector", torch.ones(128)), "has A, B, MAGNITUDE, must have"),
        (_set(Q_PROJ, "lora_A", torch.ones(4, 32)), r"A has shape \[4, 32\]"),
        (_set(Q_PROJ, "lora_A", torch.ones(8, 64)), r"A has shape \[8, 64\], its rank .* is 4"),
        (_set(Q_PROJ, "lora_B", torch.ones(0, 4)), r"B has shape \[0, 4\]"),
        (_set("lm_head", "lora_A", torch.ones(4, 64)), "no layer 'lm_head'"),
        (_set("model.layers.9.mlp.up_proj", "lora_A", torch.ones(4, 64)), "has no layer"),
        (_set("model.embed_tokens", "lora_embedding_A", torch.ones(4, 9)), "not a LoRA tensor"),
        (
            lambda t: t.update(
                {f"base_model.model.{Q_PROJ}.lora_A.default.weight": torch.ones(4, 64)}
            ),
            "there twice",
        ),
        (_set(Q_PROJ, "lora_A", torch.ones(4, 64, dtype=torch.int8)), "type 'I8'"),
        (_set(Q_PROJ, "lora_A", torch.ones(4, 64, dtype=torch.float64)), "type 'F64'"),
    ],
)
def test_unfit_tensors_are_refused_with_the_reason(
    tensors: Tensors, spec: BaseSpec, change: Callable[[Tensors], None], reason: str
) -> None:
    change(tensors)

    with pytest.raises(AdapterError, match=reason):
        parse_tensors(tensors, spec)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\x01", "truncated"),
        (b"\xff" * 64, "truncated"),
        (raw_safetensors(b"{"), "not JSON"),
        (raw_safetensors([]), "not a JSON object"),
        (raw_safetensors({}), "no tensors"),
        (raw_safetensors({"__metadata__": {"format": "pt"}}), "no tensors"),
        (raw_safetensors({"x": 1}), "x is of type None"),
        (raw_safetensors({"x": {"dtype": "F32"}}), "not valid safetensors"),
        (
            raw_safetensors({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}, b"1234"),
            "not valid safetensors",
        ),
        (raw_safetensors({f"k{i}": {} for i in range(100_000)}), "100000 tensors are more"),
        (raw_safetensors(b" " * (8 * 1024 * 1024 + 1)), "header is larger"),
        (b"\x80\x02}q\x00." + b"\0" * 64, "of another format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS pointer"),
    ],
)
def test_broken_files_are_refused_with_the_reason(
    spec: BaseSpec, content: bytes, reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        parse_weights(CONFIG, content, spec, max_rank=16)


def test_a_truncated_file_is_refused(peft_folders: dict[str, Path], spec: BaseSpec) -> None:
    content = (peft_folders["lora"] / WEIGHTS_FILE).read_bytes()

    with pytest.raises(AdapterLoadError, match="not valid safetensors"):
        parse_weights(CONFIG, content[:-1], spec, max_rank=16)


def test_files_larger_than_the_base_allows_are_refused_unread(spec: BaseSpec) -> None:
    content = bytes(max_weights_bytes(spec, 16) + 1)

    with pytest.raises(AdapterIncompatibleError, match="more than rank 16 on tiny can have"):
        parse_weights(CONFIG, content, spec, max_rank=16)


def test_ranks_above_the_limit_are_refused(peft_folders: dict[str, Path], spec: BaseSpec) -> None:
    with pytest.raises(AdapterIncompatibleError, match="rank 8 is above the limit of 4"):
        parse(peft_folders["patterns"], spec, max_rank=4)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_dora_magnitudes_must_be_positive(
    peft_folders: dict[str, Path], spec: BaseSpec, value: float
) -> None:
    tensors = read_tensors(peft_folders["dora"])
    tensors[key_of(Q_PROJ, "lora_magnitude_vector")][3] = value

    with pytest.raises(AdapterLoadError, match="must be positive"):
        parse_tensors(tensors, spec, CONFIG.model_copy(update={"use_dora": True}))


def test_dora_without_magnitudes_is_refused(tensors: Tensors, spec: BaseSpec) -> None:
    with pytest.raises(AdapterLoadError, match="must have A, B, MAGNITUDE"):
        parse_tensors(tensors, spec, CONFIG.model_copy(update={"use_dora": True}))


@given(edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8))
@settings(max_examples=200, deadline=None)
def test_bytes_changed_at_random_never_raise_anything_but_an_adapter_error(
    peft_folders: dict[str, Path], spec: BaseSpec, edits: list[tuple[int, int]]
) -> None:
    content = bytearray((peft_folders["lora"] / WEIGHTS_FILE).read_bytes())
    for position, value in edits:
        content[position] = value
    try:
        layers = parse_weights(CONFIG, bytes(content), spec, max_rank=16)
    except AdapterError:
        return
    assert all(bool(tensor.isfinite().all()) for x in layers.values() for _, tensor in x.tensors())


@settings(deadline=None)
@given(header=st.binary(max_size=64), body=st.binary(max_size=64))
def test_random_files_are_refused(spec: BaseSpec, header: bytes, body: bytes) -> None:
    for content in (header + body, raw_safetensors(header, body)):
        with pytest.raises(AdapterError):
            parse_weights(CONFIG, content, spec, max_rank=16)
