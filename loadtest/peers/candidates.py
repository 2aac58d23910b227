"""The servers that are compared, and how each is started for the same base and adapters."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VLLM_VARIABLE = "PEER_VLLM"
LLAMA_VARIABLES = ("PEER_LLAMA_SERVER", "PEER_LLAMA_BASE", "PEER_LLAMA_ADAPTERS")


@dataclass(frozen=True)
class Material:
    """What every server is given: the base as a transformers folder, PEFT folders, our registry."""

    model: str
    base: Path
    adapters: tuple[Path, ...]
    registry: Path
    threads: int


@dataclass(frozen=True)
class Candidate:
    """One server; `command` takes the port it is to listen on."""

    name: str
    command: Callable[[int], list[str]]
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    lora_list: bool = False
    # Answers so slowly that it is measured with fewer requests.
    slow: bool = False


def finlora(material: Material, arguments: list[str]) -> Candidate:
    """Ours, with everything at its default but `arguments`."""
    command = [sys.executable, "-m", "finlora", "serve", "--model", material.model]
    command += ["--registry", str(material.registry), *arguments]
    return Candidate("finlora", lambda port: [*command, "--port", str(port)], ready_path="/ready")


def peft(material: Material) -> Candidate:
    """Transformers and PEFT alone."""
    command = [sys.executable, "-m", "loadtest.peers.peft_server", str(material.base)]
    command += map(str, material.adapters)
    return Candidate("peft", lambda port: [*command, "--port", str(port)], slow=True)


def vllm(material: Material) -> Candidate | None:
    """vLLM's CPU build in an environment of its own; its 16-bit base has no NF4 on CPU."""
    executable = os.environ.get(VLLM_VARIABLE)
    if executable is None:
        return None
    command = [executable, "serve", str(material.base), "--enable-lora", "--max-lora-rank", "8"]
    command += ["--max-loras", str(len(material.adapters)), "--lora-modules"]
    command += [f"{folder.name}={folder}" for folder in material.adapters]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{material.threads - 1}",
        "HF_HUB_OFFLINE": "1",
    }
    return Candidate("vllm", lambda port: [*command, "--port", str(port)], environment=environment)


def llama_cpp(material: Material) -> Candidate | None:
    """llama.cpp's server; base and adapters were converted to GGUF beforehand."""
    values = [os.environ.get(name) for name in LLAMA_VARIABLES]
    if None in values:
        return None
    executable, base, folder = map(str, values)
    command = [executable, "-m", base, "-np", "16", "-c", "16384", "-cb"]
    command += ["-t", str(material.threads), "--lora-init-without-apply"]
    for adapter in material.adapters:
        command += ["--lora", str(Path(folder) / f"{adapter.name}.gguf")]
    return Candidate("llama.cpp", lambda port: [*command, "--port", str(port)], lora_list=True)


def found(material: Material, arguments: list[str]) -> tuple[list[Candidate], list[str]]:
    """The servers that can be started here, and a line for each that is skipped."""
    candidates = [finlora(material, arguments), peft(material)]
    skipped = []
    for peer, needed in (
        (vllm(material), VLLM_VARIABLE),
        (llama_cpp(material), ", ".join(LLAMA_VARIABLES)),
    ):
        if peer is None:
            skipped.append(f"skipped a peer: {needed} not set")
        else:
            candidates.append(peer)
    return candidates, skipped
