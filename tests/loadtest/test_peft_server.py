import asyncio
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loadtest.peers.load import Load, measure
from loadtest.peers.make_adapters import RANK, main, make_adapters
from loadtest.peers.process import free_port, serving
from tests.tiny_models import build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("base") / "tiny-llama")


def test_adapters_are_repeatable_different_and_not_zero(base: Path, tmp_path: Path) -> None:
    first, second = make_adapters(base, tmp_path / "one", 2)
    (again,) = make_adapters(base, tmp_path / "two", 1)
    tensors, others, same = (
        load_file(folder / "adapter_model.safetensors") for folder in (first, second, again)
    )
    assert len(tensors) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    for name, tensor in tensors.items():
        assert RANK in tensor.shape
        assert tensor.count_nonzero() > 0
        assert tensor.equal(same[name])
        assert not tensor.equal(others[name])


def test_the_recipe_prints_where_the_adapters_are(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(base), str(tmp_path), "--count", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "a0"
    assert (tmp_path / "a0" / "adapter_config.json").exists()


def test_the_peer_answers_mixed_adapters_under_load(base: Path, tmp_path: Path) -> None:
    adapters = make_adapters(base, tmp_path, 2)
    port = free_port()
    command = [sys.executable, "-m", "loadtest.peers.peft_server", str(base)]
    command += [*map(str, adapters), "--port", str(port)]
    load = Load(models=("a0", "a1"), clients=4, warmup=2, requests=8)
    with serving(command, port=port, ready_path="/health", log=tmp_path / "log") as server:
        prompts = [f"Input: shares rose {i} percent\nAnswer: " for i in range(10)]
        result = asyncio.run(measure(f"{server.address}/v1", load, prompts))
    assert result.errors == 0, result.first_error
    assert result.requests_per_second > 0
