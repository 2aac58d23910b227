"""The doctor's word on kernels is the server's own decision."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from finlora.bases.spec import LinearShape
from finlora.config import Quantization, Settings
from finlora.doctor.computing import check_computing
from finlora.doctor.findings import Finding, Level
from finlora.model import base_spec, load_base, packing_obstacle
from finlora.native import library
from finlora.threads import usable_cores
from tests import tiny_models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("doctor") / "tiny-llama")


def finding(subject: str, settings: Settings, base: Path | None = None) -> Finding:
    spec = None if base is None else base_spec(str(base))
    return next(f for f in check_computing(settings, spec) if f.subject == subject)


@pytest.mark.parametrize("native", [True, False])
def test_packed_layers_are_counted_as_the_loader_marks_them(
    native: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINLORA_CACHE", str(tmp_path))
    monkeypatch.setattr("finlora.model.has_avx512bf16", lambda: native)
    settings = Settings(model=str(base), device="cpu")
    loaded = load_base(str(base), Quantization.NF4, device="cpu")
    layers = [m for m in loaded.model.modules() if isinstance(m, Linear4bit)]
    found = finding("kernels", settings, base)
    assert found.facts["layers"] == len(layers)
    assert found.facts["packed"] == sum(m.support_avx512bf16_for_cpu for m in layers)
    assert found.level is (Level.OK if native else Level.NOTE)
    assert ("AVX512_BF16" in found.text) is True
    assert (found.next_step is None) == native
    assert finding("kernels", settings).level is found.level  # also before the base is known


@pytest.mark.parametrize("reason", [None, "they were not compiled when finlora was installed"])
def test_unpacked_layers_want_compiled_kernels(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.model.has_avx512bf16", lambda: False)
    monkeypatch.setattr(library, "obstacle", lambda: reason)
    *_, found = (f for f in check_computing(Settings(device="cpu"), None) if f.subject == "kernels")
    assert found.facts == {"compiled": reason is None}
    assert found.level is (Level.OK if reason is None else Level.NOTE)
    assert found.text.endswith("compiled" if reason is None else reason)


@pytest.mark.parametrize("reason", [None, "nothing was compiled for it"])
def test_a_cpu_that_computes_in_bfloat16_wants_kernels_for_that(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.model.has_avx512bf16", lambda: True)
    monkeypatch.setattr(library, "obstacle", lambda: None)
    monkeypatch.setattr(library, "avx512_obstacle", lambda: reason)
    *_, found = (f for f in check_computing(Settings(device="cpu"), None) if f.subject == "kernels")
    assert found.facts == {"compiled": reason is None}
    assert found.text.endswith("compiled" if reason is None else reason)


@pytest.mark.parametrize(
    ("shape", "dtype", "what"),
    [
        ((64, 32), torch.bfloat16, None),
        ((64, 32), torch.float32, "not in float32"),
        ((65, 32), torch.bfloat16, "65 inputs"),
        ((64, 33), torch.bfloat16, "33 outputs"),
    ],
)
def test_what_keeps_a_layer_from_being_packed(
    shape: tuple[int, int], dtype: torch.dtype, what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.model.has_avx512bf16", lambda: True)
    found = packing_obstacle(LinearShape(*shape), dtype)
    assert (found is None) if what is None else (what in (found or ""))


def test_other_quantisations_have_kernels_of_their_own() -> None:
    found = finding("kernels", Settings(quantization=Quantization.NONE, device="cpu"))
    assert "none on cpu" in found.text


def test_a_device_that_is_not_there_is_a_problem() -> None:
    (found,) = check_computing(Settings(device="quantum"), None)
    assert found.level is Level.PROBLEM


def test_threads_that_are_not_the_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cores()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert finding("threads", Settings(device="cpu")).level is Level.OK
    assert finding("threads", Settings(device="cpu", threads=cores + 1)).level is Level.NOTE
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 2))
    assert finding("threads", Settings(device="cpu")).facts["threads"] == cores + 2
