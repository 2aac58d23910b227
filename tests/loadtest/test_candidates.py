from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.peers.candidates import LLAMA_VARIABLES, VLLM_VARIABLE, Material, engine, found

MATERIAL = Material(
    model="smollm2-135m-instruct",
    base=Path("/bases/smollm2"),
    adapters=(Path("/made/a0"), Path("/made/a1")),
    registry=Path("/made/registry"),
    threads=2,
    computes_bf16=True,
)


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VLLM_VARIABLE, *LLAMA_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def test_peers_without_an_environment_are_skipped_by_name() -> None:
    candidates, skipped = found(MATERIAL, [])
    assert [candidate.name for candidate in candidates] == ["finlora", "peft"]
    assert len(skipped) == 2
    assert VLLM_VARIABLE in skipped[0]
    assert all(name in skipped[1] for name in LLAMA_VARIABLES)


def test_ours_is_started_with_its_defaults_and_the_given_flags() -> None:
    command = found(MATERIAL, ["--max-loras", "2"])[0][0].command(8123)
    assert command[1:] == [
        *("-m", "finlora", "serve", "--model", "smollm2-135m-instruct"),
        *("--registry", "/made/registry", "--max-loras", "2", "--port", "8123"),
    ]


def test_vllm_gets_the_same_adapters_and_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VLLM_VARIABLE, "/envs/vllm/bin/vllm")
    by_name = {candidate.name: candidate for candidate in found(MATERIAL, [])[0]}
    command = by_name["vllm"].command(8123)
    assert command[0] == "/envs/vllm/bin/vllm"
    assert {"a0=/made/a0", "a1=/made/a1", "8123"} <= set(command)
    assert by_name["vllm"].environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


@pytest.mark.parametrize("computes_bf16", [True, False])
def test_vllm_computes_in_float32_where_the_cpu_cannot_in_bf16(
    monkeypatch: pytest.MonkeyPatch, computes_bf16: bool
) -> None:
    monkeypatch.setenv(VLLM_VARIABLE, "/envs/vllm/bin/vllm")
    material = replace(MATERIAL, computes_bf16=computes_bf16)
    for candidate in found(material, [])[0][2:]:
        assert ("--dtype" in candidate.command(8123)) is not computes_bf16


def test_vllm_without_lora_is_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VLLM_VARIABLE, "/envs/vllm/bin/vllm")
    by_name = {candidate.name: candidate for candidate in found(MATERIAL, [])[0]}
    command = by_name["vllm-base"].command(8123)
    assert not [word for word in command if "lora" in word]
    assert command[command.index("--served-model-name") + 1] == by_name["vllm-base"].base_name


def test_the_engine_runs_on_the_same_registry_with_the_same_flags() -> None:
    candidate = engine(MATERIAL, ["--max-loras", "2"])
    assert candidate.in_process
    assert candidate.command(0)[3:] == [
        *("--model", "smollm2-135m-instruct", "--registry", "/made/registry"),
        *("--max-loras", "2"),
    ]


def test_llama_cpp_needs_all_of_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LLAMA_VARIABLES, ("/llama-server", "/base.gguf", "/gguf"), strict=True):
        assert "llama.cpp" not in {candidate.name for candidate in found(MATERIAL, [])[0]}
        monkeypatch.setenv(name, value)
    (llama,) = (c for c in found(MATERIAL, [])[0] if c.name == "llama.cpp")
    command = llama.command(8123)
    assert [command[i + 1] for i, word in enumerate(command) if word == "--lora"] == [
        "/gguf/a0.gguf",
        "/gguf/a1.gguf",
    ]
    assert llama.lora_list
