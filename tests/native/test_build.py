"""The wheel with and without a C compiler, built from a copy of the sources, without a network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.native.kernels import needs_kernels

ROOT = Path(__file__).parents[2]
NEEDED = ("README.md", "LICENSE", "NOTICE", "pyproject.toml", "hatch_build.py")
LIBRARY = "finlora/native/_kernels.so"
AVX512_LIBRARY = "finlora/native/_kernels_avx512.so"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built from, as small as it can be."""
    copy = tmp_path_factory.mktemp("sources")
    for name in NEEDED:
        shutil.copyfile(ROOT / name, copy / name)
    native = copy / "server" / "finlora" / "native"
    native.mkdir(parents=True)
    shutil.copyfile(ROOT / "server/finlora/__init__.py", native.parent / "__init__.py")
    for file in (ROOT / "server/finlora/native").glob("*.[chp]*"):
        if file.is_file():
            shutil.copyfile(file, native / file.name)
    return copy


def build(sources: Path, compiler: str) -> tuple[Path, str]:
    """The wheel and what was printed."""
    shutil.rmtree(sources / "dist", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=sources,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (sources / "dist").iterdir()
    return wheel, done.stdout + done.stderr


@needs_kernels
@pytest.mark.parametrize("compiler", ["cc", "cc -m64", "env 'cc' -m64"])
def test_with_a_compiler_the_wheel_is_for_this_kind_of_machine(
    sources: Path, compiler: str
) -> None:
    wheel, _ = build(sources, compiler)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {LIBRARY, AVX512_LIBRARY} <= set(archive.namelist())


@needs_kernels
def test_a_compiler_that_knows_no_avx512_bf16_leaves_out_its_kernels_alone(
    sources: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old-cc"
    old.write_text('#!/bin/sh\ncase "$*" in *avx512bf16*) exit 1;; esac\nexec cc "$@"\n')
    old.chmod(0o755)
    wheel, printed = build(sources, str(old))
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY in archive.namelist()
        assert AVX512_LIBRARY not in archive.namelist()
    assert "finlora's C kernels for AVX512_BF16 are left out" in printed


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "cc 'unbalanced"])
def test_without_one_it_is_plain_python_and_the_reason_is_printed(
    sources: Path, compiler: str
) -> None:
    wheel, printed = build(sources, compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()
    if sys.platform == "linux":
        assert "finlora's C kernels are left out" in printed


def test_kernels_of_before_outlive_a_compiler_that_fails(sources: Path) -> None:
    kernels = sources / "server" / LIBRARY
    kernels.write_bytes(b"used by an editable install")
    wheel, _ = build(sources, "false")
    assert kernels.read_bytes() == b"used by an editable install"
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()


@needs_kernels
def test_where_the_library_cannot_be_written_it_is_left_out(sources: Path) -> None:
    kernels = sources / "server" / LIBRARY
    kernels.unlink(missing_ok=True)
    kernels.mkdir()  # stands for a read-only folder, which does not stop root
    (kernels / "file").write_text("keeps the folder from being replaced")
    try:
        wheel, printed = build(sources, "cc")
    finally:
        shutil.rmtree(kernels)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "finlora's C kernels are left out" in printed
