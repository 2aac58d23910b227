"""The servers that are compared, and how each is started for the same base and adapters."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finlora.bases.locate import display_name

VLLM_VARIABLE = "PEER_VLLM"
LLAMA_VARIABLES = ("PEER_LLAMA_SERVER", "PEER_LLAMA_BASE", "PEER_LLAMA_ADAPTERS")
BASE_NAME = "base"  # what vLLM is told to call the base


@dataclass(frozen=True)
class Material:
    """What every server is given: the base as a transformers folder, PEFT folders, our registry."""

    model: str
    base: Path
    adapters: tuple[Path, ...]
    registry: Path
    threads: int
    computes_bf16: bool  # the CPU has instructions for it


@dataclass(frozen=True)
class Candidate:
    """One server; `command` takes the port it is to listen on."""

    name: str
    command: Callable[[int], list[str]]
    base_name: str  # the model name that means: no adapter
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    # Adapters are named by index and scale in a list instead of by model name.
    lora_list: bool = False
    # Answers so slowly that it is measured with fewer requests.
    slow: bool = False
    # Not a server: the engine in a process that reads loads from its standard input.
    in_process: bool = False


def finlora(
    material: Material,
    flags: Sequence[str],
    *,
    name: str = "finlora",
    registry: Path | None = None,
) -> Candidate:
    """Ours, with everything at its default but `flags`."""
    command = [sys.executable, "-m", "finlora", "serve", "--model", material.model]
    command += ["--registry", str(registry or material.registry), *flags]
    return Candidate(
        name,
        lambda port: [*command, "--port", str(port)],
        base_name=display_name(material.model),
        ready_path="/ready",
    )


def engine(material: Material, flags: Sequence[str]) -> Candidate:
    """Our engine without HTTP."""
    command = [sys.executable, "-m", "loadtest.peers.in_process", "--model", material.model]
    command += ["--registry", str(material.registry), *flags]
    name = display_name(material.model)
    return Candidate("engine", lambda _: command, base_name=name, in_process=True)


def peft(material: Material) -> Candidate:
    """Transformers and PEFT alone."""
    command = [sys.executable, "-m", "loadtest.peers.peft_server", str(material.base)]
    command += map(str, material.adapters)
    return Candidate(
        "peft", lambda port: [*command, "--port", str(port)], base_name=BASE_NAME, slow=True
    )


def vllm(material: Material, *, adapters: bool) -> Candidate | None:
    """vLLM's CPU build in an environment of its own; its 16-bit base has no NF4 on CPU."""
    executable = os.environ.get(VLLM_VARIABLE)
    if executable is None:
        return None
    command = [executable, "serve", str(material.base), "--served-model-name", BASE_NAME]
    command += ["--enable-prompt-tokens-details"]
    if not material.computes_bf16:
        # By default it takes the type of the weights, and would compute every product in pieces.
        command += ["--dtype", "float32"]
    if adapters:
        command += ["--enable-lora", "--max-lora-rank", "8"]
        command += ["--max-loras", str(len(material.adapters)), "--lora-modules"]
        command += [f"{folder.name}={folder}" for folder in material.adapters]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{material.threads - 1}",
        "HF_HUB_OFFLINE": "1",
    }
    return Candidate(
        "vllm" if adapters else "vllm-base",
        lambda port: [*command, "--port", str(port)],
        base_name=BASE_NAME,
        environment=environment,
    )


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
    return Candidate(
        "llama.cpp",
        lambda port: [*command, "--port", str(port)],
        base_name=BASE_NAME,
        lora_list=True,
    )


def found(material: Material, flags: Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """The servers that can be started here, and a line for each that is skipped."""
    candidates = [finlora(material, flags), peft(material)]
    skipped = []
    for peers, needed in (
        ([vllm(material, adapters=True), vllm(material, adapters=False)], VLLM_VARIABLE),
        ([llama_cpp(material)], ", ".join(LLAMA_VARIABLES)),
    ):
        present = [peer for peer in peers if peer is not None]
        candidates += present
        if not present:
            skipped.append(f"skipped a peer: {needed} not set")
    return candidates, skipped
