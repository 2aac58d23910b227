"""Loading a base: the right numbers in the right format, safe to run from any thread."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finlora.config import Quantization
from finlora.errors import BaseModelError, ConfigError
from finlora.model import LoadedBase, base_spec, load_base, memory_bytes, pack, prepare_base
from tests.default_base import FINGERPRINT, NAME, TOKENIZER_HASH
from tests.tiny_models import ARCHITECTURES, build, edit_config

needs_packing = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no packed kernel")
PROMPT = torch.tensor([[5, 100, 30, 200, 77]])
NF4 = Quantization.NF4


def logits(model: PreTrainedModel, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(ids, use_cache=False).logits
    return out


def four_bit_layers(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def default_base() -> LoadedBase:
    base = load_base(NAME, NF4, device="cpu")
    pack(base.model)
    return base


def test_the_default_base_is_nf4_with_double_quantisation(default_base: LoadedBase) -> None:
    fresh = load_base(NAME, NF4, device="cpu", training=True)
    assert fresh.spec.fingerprint == FINGERPRINT
    assert fresh.spec.tokenizer_hash == TOKENIZER_HASH
    assert fresh.spec.eos_token_ids == (fresh.tokenizer.eos_token_id,)
    layers = four_bit_layers(fresh.model)
    assert len(layers) == len(fresh.spec.linear_layers) == 210
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert layer.compute_dtype is fresh.compute_dtype


def test_the_default_base_knows_the_capital_of_france(default_base: LoadedBase) -> None:
    tokenizer = default_base.tokenizer
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode(logits(default_base.model, ids)[0, -1].argmax()) == " Paris"


def test_the_chat_model_stops_at_its_end_token(default_base: LoadedBase) -> None:
    tokenizer, model = default_base.tokenizer, default_base.model
    messages = [{"role": "user", "content": "Say only: yes"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    ids = tokenizer.encode(text)
    for _ in range(64):
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in default_base.spec.eos_token_ids:
            return
    pytest.fail(f"no end of text in {tokenizer.decode(ids)!r}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_loads(architecture: str, tmp_path: Path) -> None:
    folder = build(architecture, tmp_path / architecture)
    base = load_base(str(folder), NF4, device="cpu", dtype=torch.float32)
    assert base.spec == base_spec(str(folder))
    assert base.spec.name == architecture
    assert len(four_bit_layers(base.model)) == len(base.spec.linear_layers) == 14
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert logits(base.model).isfinite().all()
    text = "Zürich 12.5 <|im_end|>"
    assert base.tokenizer.decode(base.tokenizer.encode(text)) == text
    assert "Ġ12" not in base.tokenizer.tokenize(text), "tokenizer.json was not taken as it is"


@needs_packing
def test_packing_reaches_every_layer(llama: Path) -> None:
    before = logits(load_base(str(llama), NF4, dtype=torch.bfloat16, training=True).model)
    model = load_base(str(llama), NF4, device="cpu", dtype=torch.bfloat16).model
    layers = four_bit_layers(model)
    assert pack(model) == len(layers) == 14
    assert all(layer.weight.quant_state.packing_format_for_cpu for layer in layers)
    # The packed kernel keeps its block scales in bfloat16: 0.3 % of a layer's output.
    assert (logits(model) - before).norm() < 0.03 * before.norm()
    weights = [layer.weight.data.clone() for layer in layers]
    assert pack(model) == 14
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(layer.weight.data, weight)


@needs_packing
def test_threads_cannot_break_a_packed_base(default_base: LoadedBase) -> None:
    num_threads = 4
    ids = torch.arange(1000, 1016)[None]
    expected = logits(default_base.model, ids)
    start = Barrier(num_threads)

    def run(_: int) -> torch.Tensor:
        start.wait()
        return logits(default_base.model, ids)

    with ThreadPoolExecutor(num_threads) as pool:
        for result in pool.map(run, range(num_threads)):
            assert torch.equal(result, expected)


@needs_packing
def test_layers_the_packed_kernel_cannot_take_stay_unpacked(tmp_path: Path) -> None:
    # Inputs of 96 are no multiple of 64; only the down projections (128 -> 96) fit.
    folder = build(
        "llama", tmp_path / "odd", hidden_size=96, num_attention_heads=3, num_key_value_heads=3
    )
    unpacked = load_base(str(folder), NF4, dtype=torch.bfloat16, training=True)
    base = load_base(str(folder), NF4, dtype=torch.bfloat16)
    assert pack(base.model) == 2
    expected = logits(unpacked.model)
    assert (logits(base.model) - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_base_passes_gradients_after_an_evaluation(
    llama: Path, dtype: torch.dtype
) -> None:
    base = load_base(str(llama), NF4, device="cpu", dtype=dtype, training=True)
    logits(base.model)
    assert pack(base.model) == 0
    embedded = base.model.get_input_embeddings()(PROMPT).detach().requires_grad_(True)
    base.model(inputs_embeds=embedded, use_cache=False).logits.float().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


def test_float32_never_takes_the_bfloat16_kernel(llama: Path) -> None:
    base = load_base(str(llama), NF4, device="cpu", dtype=torch.float32)
    before = logits(base.model)
    assert pack(base.model) == 0
    assert torch.equal(logits(base.model), before)


@pytest.mark.parametrize("tied", [True, False])
def test_every_byte_is_counted_once(tmp_path: Path, tied: bool) -> None:
    folder = str(build("llama", tmp_path / "llama", tie_word_embeddings=tied))
    plain = load_base(folder, Quantization.NONE, device="cpu", dtype=torch.bfloat16)
    parts = memory_bytes(plain.model)
    assert sum(parts.values()) - buffer_bytes(plain) == 2 * plain.model.num_parameters()
    assert parts["embeddings"] == 2 * 512 * 64 * (1 if tied else 2)

    base = load_base(folder, NF4, device="cpu", dtype=torch.bfloat16)
    num_weights = sum(s.in_features * s.out_features for s in base.spec.linear_layers.values())
    for num_packed in (0, pack(base.model)):
        parts = memory_bytes(base.model)
        assert parts["quantized"] == num_weights // 2
        assert parts["embeddings"] == 2 * 512 * 64 * (1 if tied else 2)
        if num_packed:
            assert parts["scales"] == num_weights // 64 * 2  # bfloat16


def buffer_bytes(base: LoadedBase) -> int:
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in base.model.buffers()}
    return sum(buffers.values())


def test_int8_scales_are_counted_before_and_after_a_forward(llama: Path) -> None:
    base = load_base(str(llama), Quantization.INT8, device="cpu", dtype=torch.float32)
    rows = sum(shape.out_features for shape in base.spec.linear_layers.values())
    assert memory_bytes(base.model)["scales"] == 4 * rows
    logits(base.model)
    assert memory_bytes(base.model)["scales"] == 4 * rows


@pytest.mark.parametrize(
    ("in_generation_config", "expected"), [([2, 0], (2, 0)), (1, (1,)), (None, (2,))]
)
def test_end_tokens(
    tmp_path: Path, in_generation_config: object, expected: tuple[int, ...]
) -> None:
    folder = build("llama", tmp_path / "llama")
    (folder / "generation_config.json").write_text(
        f'{{"eos_token_id": {"null" if in_generation_config is None else in_generation_config}}}'
    )
    assert base_spec(str(folder)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "<|im_end|>"}'),
        ("generation_config.json", '{"eos_token_id": [2, null]}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    folder = build("llama", tmp_path / "llama")
    (folder / name).write_text(content)
    with pytest.raises(BaseModelError, match=name):
        load_base(str(folder), Quantization.NONE, device="cpu")


def test_a_known_spec_is_read_without_torch(llama: Path) -> None:
    spec = base_spec(str(llama))
    code = (
        "import sys; from finlora.bases.spec_cache import cached_spec;"
        f"print(cached_spec({str(llama)!r}).fingerprint, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [spec.fingerprint, "False"]


def test_preparing_does_what_loading_would(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "qwen3", seed=7)
    assert prepare_base(str(folder), NF4, device="cpu") == base_spec(str(folder))
    (folder / "model.safetensors").touch()  # computed again, and found to be the same
    assert (
        prepare_base(str(folder), NF4, device="cpu").fingerprint
        == base_spec(str(folder)).fingerprint
    )


def test_an_architecture_that_cannot_be_served(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "llama")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    edit_config(folder, rope_parameters=rope)
    with pytest.raises(BaseModelError, match="'dynamic'"):
        load_base(str(folder), NF4)


@pytest.mark.parametrize("device", ["warp", "meta", "mps", "cuda"])
def test_devices_that_are_not_there(llama: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match="device"):
        load_base(str(llama), NF4, device=device)


def test_a_truncation_in_the_tokenizers_file_is_not_applied(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "base")
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=16)
    saved.save(str(folder / "tokenizer.json"))
    tokenizer = load_base(str(folder), Quantization.NONE, device="cpu").tokenizer
    assert len(tokenizer.backend_tokenizer.encode("profit rose " * 20).ids) > 20
    assert len(tokenizer.backend_tokenizer.encode("a").ids) == 1
