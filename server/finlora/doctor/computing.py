"""What will compute: device, threads and the kernels of the quantised layers. Imports torch."""

import os
from collections import Counter
from collections.abc import Iterator

import torch

from finlora.bases.spec import BaseSpec, LinearShape
from finlora.config import GIB, Quantization, Settings
from finlora.doctor.findings import Finding, note, ok, problem
from finlora.errors import ConfigError
from finlora.model import best_dtype, packing_obstacle, target_device
from finlora.native import library
from finlora.threads import usable_cores, wanted_threads

FASTER = (
    "a CPU with AVX512_BF16 (Intel since Sapphire Rapids, AMD since Zen 4) or a GPU computes in "
    "bfloat16"
)
COMPILE = "where there is a C compiler, install finlora again: several times faster"
ANY_SHAPE = LinearShape(in_features=1024, out_features=1024)


def check_computing(settings: Settings, spec: BaseSpec | None) -> Iterator[Finding]:
    """Everything about the device of the settings."""
    try:
        device = target_device(settings.device)
    except ConfigError as error:
        yield problem("device", str(error), "choose another --device")
        return
    yield from _check_device(device)
    yield from _check_threads(settings)
    yield from _check_layers(settings, device, spec)
    if device.type == "cpu":
        yield _compiled_kernels(best_dtype(device))


def _check_device(device: torch.device) -> Iterator[Finding]:
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus]
    listed = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
    text = f"{device}; {f'CUDA: {listed}' if gpus else 'no CUDA device'}"
    if not gpus and os.path.exists("/dev/nvidia0"):
        step = "install a CUDA build of torch (see the README) and a driver that it accepts"
        yield note("device", f"{text} that torch {torch.__version__} can use", step, cuda=found)
    elif gpus and device.type == "cpu":
        yield note("device", text, "--device cuda uses the GPU", cuda=found)
    else:
        yield ok("device", text, cuda=found)


def _check_threads(settings: Settings) -> Iterator[Finding]:
    wanted, cores = wanted_threads(settings.threads), usable_cores()
    from_variable = os.environ.get("OMP_NUM_THREADS", "")
    threads = wanted or (int(from_variable) if from_variable.isdecimal() else cores)
    source = "OMP_NUM_THREADS" if wanted is None else "--threads" if settings.threads else "cores"
    text = f"{threads} (by {source}) on {cores} usable cores"
    if threads == cores:
        yield ok("threads", text, threads=threads, cores=cores)
    else:
        yield note("threads", text, f"--threads {cores} is usually fastest", threads=threads,
                   cores=cores)  # fmt: skip


def _check_layers(
    settings: Settings, device: torch.device, spec: BaseSpec | None
) -> Iterator[Finding]:
    dtype = best_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if settings.quantization is not Quantization.NF4 or device.type != "cpu":
        kind, where = settings.quantization, device.type
        yield ok("kernels", f"{kind} on {where}, computing in {name}", compute_dtype=name)
        return
    shapes = [ANY_SHAPE] if spec is None else list(spec.linear_layers.values())
    obstacles = Counter(packing_obstacle(shape, dtype) for shape in shapes)
    num_packed = obstacles.pop(None, 0)
    facts = {"compute_dtype": name, "packed": num_packed, "layers": len(shapes),
             "obstacles": dict(obstacles)}  # fmt: skip
    counted = f"{num_packed} of {len(shapes)} layers" if spec else "layers of usual sizes"
    if not obstacles:
        yield ok("kernels", f"NF4 packed for AVX512_BF16, {counted}", **facts)
        return
    reasons = "; ".join(map(str, obstacles))
    text = f"NF4 unpacked in {len(shapes) - num_packed} of {len(shapes)} layers: {reasons}"
    yield note("kernels", f"{text}; computing in {name}", FASTER, **facts)


def _compiled_kernels(dtype: torch.dtype) -> Finding:
    what = "finlora's own for layers, adapters and attention"
    in_half = dtype is torch.bfloat16
    reason = library.avx512_obstacle() if in_half else library.obstacle()
    if reason is None:
        return ok("kernels", f"{what}: compiled", compiled=True)
    return note("kernels", f"{what}: {reason}", COMPILE, compiled=False)
