"""Quantised bases: kept bit for bit, repaired when damaged, independent of the user's files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from finlora.bases.checkpoints import checkpoint_bytes, checkpoint_folder
from finlora.bases.quantized import load_quantized, prepare
from finlora.bases.store import is_intact
from finlora.bases.tensors import WEIGHTS_FILE
from finlora.config import Quantization
from finlora.errors import BaseModelError
from tests.tiny_models import edit_config

CPU = torch.device("cpu")
KEY = "0" * 64
PROMPT = torch.tensor([[5, 100, 30, 200, 77]])


def load(
    folder: Path, quantization: Quantization, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    model = load_quantized(folder, KEY, quantization, dtype=dtype, device=CPU)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    model.eval()
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(PROMPT).logits
    return out


@pytest.mark.parametrize("kind", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checkpoint_is_what_bitsandbytes_makes(
    llama: Path, empty_cache: Path, kind: Quantization, dtype: torch.dtype
) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=str(kind),
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    fresh = AutoModelForCausalLM.from_pretrained(llama, quantization_config=config, dtype=dtype)
    expected, found = fresh.state_dict(), load(llama, kind, dtype).state_dict()
    assert expected.keys() == found.keys()
    assert any(name.endswith(f"bitsandbytes__{kind}") for name in found)
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name


def test_quantises_once(llama: Path, empty_cache: Path) -> None:
    folder = prepare(llama, KEY, Quantization.NF4, torch.float32)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (llama / "model.safetensors").unlink()
    load(llama, Quantization.NF4)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
OTHER_CONFIG = {"rope_parameters": YARN, "rms_norm_eps": 0.1, "hidden_act": "gelu"}


@pytest.mark.parametrize("kind", [Quantization.NF4, Quantization.NONE])
def test_the_folders_own_config_counts(llama: Path, empty_cache: Path, kind: Quantization) -> None:
    other = Path(shutil.copytree(llama, llama.parent / "same weights"))
    edit_config(other, **OTHER_CONFIG)
    before, beside = logits(load(llama, kind)), load(other, kind)
    assert not torch.equal(logits(beside), before)
    assert beside.config.rms_norm_eps == 0.1
    edit_config(llama, **OTHER_CONFIG)
    assert torch.equal(logits(load(llama, kind)), logits(beside))


def test_a_config_may_ask_for_more_tensors_than_before(llama: Path, empty_cache: Path) -> None:
    whole = logits(load(llama, Quantization.NF4))
    edit_config(llama, num_hidden_layers=1)
    load(llama, Quantization.NF4)
    assert list(checkpoint_bytes(llama, KEY)) == ["nf4-float32"]
    edit_config(llama, num_hidden_layers=2)
    assert not checkpoint_bytes(llama, KEY)
    assert torch.equal(logits(load(llama, Quantization.NF4)), whole)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write the folder's weights anew, with some of them edited."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


UP = "model.layers.0.mlp.up_proj"
NORM = "model.norm.weight"
MISFITS = [
    (lambda t: t.pop(NORM), rf"{NORM} is missing"),
    (lambda t: t.pop("model.embed_tokens.weight"), "embed_tokens.weight is missing"),
    (lambda t: t.pop(f"{UP}.weight"), rf"{UP}\.weight is missing"),
    (lambda t: [t.pop(name) for name in list(t) if "mlp" in name], "is missing and 3 more"),
    (lambda t: t.update({NORM: torch.ones(70)}), rf"{NORM} is \[70\], not \[64\]"),
    (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].t().contiguous()}),
        rf"{UP}\.weight is \[64, 128\], not \[128, 64\]",
    ),
    (lambda t: t.update({f"{UP}.weight": torch.ones(130, 64)}), r"is \[130, 64\], not"),
    (lambda t: t.update({f"{UP}.bias": torch.ones(128)}), rf"{UP}\.bias has no place"),
]


@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize(("edit", "message"), MISFITS)
def test_weights_that_do_not_fit_the_config_are_refused(
    llama: Path,
    empty_cache: Path,
    kind: Quantization,
    edit: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    change(llama, edit)
    with pytest.raises(BaseModelError, match=message):
        load(llama, kind)
    assert not list(empty_cache.glob("quantized/[!.]*"))


def test_tensors_beside_the_model_do_no_harm(llama: Path, empty_cache: Path) -> None:
    before = logits(load(llama, Quantization.NONE))
    beside = {"model.layers.2.mlp.up_proj.weight": torch.ones(4), "draft.weight": torch.ones(4)}
    change(llama, lambda tensors: tensors.update(beside))
    assert torch.equal(logits(load(llama, Quantization.NONE)), before)


def test_a_damaged_checkpoint_is_made_again(llama: Path, empty_cache: Path) -> None:
    before = logits(load(llama, Quantization.NF4))
    weights = checkpoint_folder(llama, KEY, "nf4-float32") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.unlink()  # the first model still maps the old file
    weights.write_bytes(content)
    assert torch.equal(logits(load(llama, Quantization.NF4)), before)
    assert is_intact(weights.parent)


@pytest.mark.parametrize("kind", [Quantization.NONE, Quantization.INT8])
def test_a_loaded_base_survives_changes_of_its_files(
    llama: Path, empty_cache: Path, kind: Quantization
) -> None:
    model = load(llama, kind)
    before = logits(model)
    with (llama / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))
        file.truncate(size // 4)
    assert torch.equal(logits(model), before)


def test_int8_rows_do_not_depend_on_each_other(llama: Path, empty_cache: Path) -> None:
    model = load(llama, Quantization.INT8)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, Linear8bitLt)
    row = torch.randn(1, layer.in_features)
    outlier = torch.full_like(row, 0.01)
    outlier[0, 3] = 1000.0
    with torch.no_grad():
        alone, beside = layer(row), layer(torch.cat([row, outlier]))
    assert torch.equal(alone[0], beside[0])


def test_none_is_the_source(llama: Path, empty_cache: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(llama)
    assert torch.equal(logits(load(llama, Quantization.NONE)), logits(plain))
    assert not empty_cache.exists()
