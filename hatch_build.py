"""Compiles server/finlora/native/*.c into the wheel where there is a C compiler that can, and takes
the shipped adapters along.

Without a compiler the package is plain Python and computes with bitsandbytes' kernels instead.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ADAPTERS = "adapters_registry"
SHIPPED = Path("server/finlora/_shipped")
NATIVE = Path("server/finlora/native")
ONLY_AVX512 = "*_avx512.c"  # sources that the first library goes without
# Which one a processor can run is looked at when they are loaded.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "_kernels.so": (),
    "_kernels_avx512.so": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"),
}
COMPILE = ("-std=c11", "-O3", "-mavx2", "-mfma", "-fopenmp", "-fPIC", "-c")
# Not with -fopenmp: the threads are to be those of the OpenMP library that torch has loaded.
LINK = ("-shared",)


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled library, and says for which machines the wheel then is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before files are collected; a wheel that cannot be compiled is built without.

        Kernels of before stay where the compiler fails: an editable install uses them, as far as
        they are of the version that its sources need. No wheel carries them.
        """
        if version == "standard":
            build_data["force_include"].update(_adapters(Path(self.root)))
        if not _is_known_machine():
            return
        for name in LIBRARIES:
            try:
                _compile(Path(self.root) / NATIVE, name)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                kernels = "C kernels" if name == "_kernels.so" else "C kernels for AVX512_BF16"
                self.app.display_warning(f"finlora's {kernels} are left out: {_reason(error)}")
                return
            build_data["artifacts"].append((NATIVE / name).as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"


def _adapters(root: Path) -> dict[str, str]:
    """From where to where they go. A checkout has a link that is followed, an sdist has none."""
    is_there = (root / ADAPTERS).is_dir() and not (root / SHIPPED).exists()
    return {ADAPTERS: SHIPPED.relative_to("server").as_posix()} if is_there else {}


def _is_known_machine() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _compile(native: Path, name: str) -> None:
    compiler, flags = _compiler(), LIBRARIES[name]
    sources = set(native.glob("*.c"))
    if not flags:
        sources -= set(native.glob(ONLY_AVX512))
    partial = native / f"partial{name}"
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source in sorted(sources):
            objects.append(str(Path(folder) / f"{source.stem}.o"))
            _run(*compiler, *COMPILE, *flags, str(source), "-o", objects[-1])
        _run(*compiler, *LINK, *objects, "-o", str(partial))
    # Replaced, not overwritten: a running server has the old one mapped.
    partial.replace(native / name)


def _compiler() -> list[str]:
    """The program and what it is always given: CC may be "ccache gcc" or "gcc -m64"."""
    chosen = shlex.split(os.environ.get("CC", ""))
    found = shutil.which("cc") or shutil.which("gcc")
    if not chosen and found is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc or $CC)")
    return chosen or [str(found)]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _reason(error: Exception) -> str:
    printed = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return f"{error}\n{printed}".strip()
