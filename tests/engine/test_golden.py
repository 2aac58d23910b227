"""No server with broken layers becomes ready, and none has layers left to pack when it is."""

from pathlib import Path

import pytest
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from transformers import PreTrainedModel

from finlora.adapters.registry import AdapterRegistry
from finlora.config import DEFAULT_BASE, Quantization
from finlora.engine import factory
from finlora.errors import BaseModelError
from finlora.model import LoadedBase, load_base, pack
from tests.engine.harness import EngineUnderTest

needs_packing = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no packed kernel")


@pytest.fixture
def base() -> LoadedBase:
    return load_base(DEFAULT_BASE, Quantization.NF4, device="cpu")


def four_bit_layers(model: PreTrainedModel) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


@needs_packing
@pytest.mark.usefixtures("without_avx512_kernels")
def test_all_layers_are_packed_before_anybody_else_can_run_them(
    base: LoadedBase, tmp_path: Path
) -> None:
    layers = four_bit_layers(base.model)
    assert len(layers) == 210
    engine = EngineUnderTest(base, AdapterRegistry(tmp_path))
    for layer in layers:
        assert layer.weight.quant_state.packing_format_for_cpu  # type: ignore[attr-defined]
    engine.close()


@needs_packing
@pytest.mark.usefixtures("without_avx512_kernels")
@pytest.mark.parametrize("index", [0, 100, 209])
def test_one_layer_broken_by_packing_is_found(
    base: LoadedBase, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two threads that pack the same layer leave behind: its blocks in a wrong order."""

    def pack_badly(model: PreTrainedModel) -> int:
        num_packed = pack(model)
        weight = four_bit_layers(model)[index].weight
        weight.data = weight.data.flip(0)
        return num_packed

    monkeypatch.setattr(factory, "pack", pack_badly)
    with pytest.raises(BaseModelError, match="disagrees with the model"):
        EngineUnderTest(base, AdapterRegistry(tmp_path))
