"""Where the compiled kernels cannot be used, the reason is told."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from finlora.native import library
from tests.native.kernels import needs_avx512_kernels


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The library is looked for anew in the test, and after it."""
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def test_the_source_and_its_reader_are_of_one_version() -> None:
    source = library.LIBRARY.with_name("version.c").read_text()
    assert f"finlora_kernels_version(void) {{ return {library.VERSION}; }}" in source


@needs_avx512_kernels
@pytest.mark.parametrize("content", [None, b"of an older compiler"])
def test_without_kernels_for_avx512_bf16_the_others_serve(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.avx512_obstacle() is None
    library.load.cache_clear()
    monkeypatch.setattr(library, "AVX512_LIBRARY", tmp_path / "_kernels_avx512.so")
    if content is not None:
        library.AVX512_LIBRARY.write_bytes(content)
    assert library.obstacle() is None
    assert "nothing was compiled for it" in (library.avx512_obstacle() or "")


def test_a_cpu_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    assert library.obstacle() == "the CPU's abilities are DEFAULT, AVX2 is needed"


def test_an_installation_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_kernels.so")
    assert library.obstacle() == "they were not compiled when finlora was installed"


def test_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    (tmp_path / "_kernels.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_kernels.so")
    assert (library.obstacle() or "").startswith("they cannot be loaded: ")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("int finlora_kernels_version(void) { return 0; }", "they are of version 0, needed is "),
        ("int another(void) { return 0; }", "they cannot be loaded"),
    ],
)
def test_a_library_left_by_another_version(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "old.c", "-o", "_kernels.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_kernels.so")
    assert (library.obstacle() or "").startswith(reason)
