"""What `make` installs: the pins and pyproject.toml must not drift apart."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}
DIRECT = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    assert set(PINS) == {canonicalize_name(requirement.name) for requirement in DIRECT}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: str(requirement.name))
def test_a_pin_is_exact_allowed_and_installed(requirement: Requirement) -> None:
    (pin,) = PINS[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert pin.version in requirement.specifier
    # Torch says which build it is: 2.13.0+cpu.
    assert version(requirement.name).partition("+")[0] == pin.version


def test_make_serve_passes_host_port_and_arguments_through() -> None:
    command = ["make", "--dry-run", "--silent", "serve", "HOST=::1", "PORT=9", "ARGS=--max-loras 2"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert planned.splitlines()[-1].endswith("finlora serve --host ::1 --port 9 --max-loras 2")


def test_the_index_of_torch_need_carry_nothing_but_torch() -> None:
    command = ["make", "--dry-run", "VENV=.no-venv", "TORCH_INDEX=https://index", ".no-venv/.serve"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    dockerfile = (ROOT / "Dockerfile").read_text()
    lines = [line for line in (planned + dockerfile).splitlines() if "--index-url" in line]
    assert len(lines) == 2
    assert all("--no-deps" in line and line.endswith(" torch") for line in lines)


def test_ci_runs_the_checks_and_then_exactly_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == ["make check", "make test"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows of this tree, as it is now."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def built(folder: Path, target: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target]
    # Whether kernels are compiled makes no difference here, but takes long.
    subprocess.run(command, cwd=folder, env=os.environ | {"CC": "false"}, check=True)
    (file,) = (folder / "dist").glob("*.tar.gz" if target == "sdist" else "*.whl")
    return file


def adapters_in(names: list[str], folder: str) -> list[str]:
    return sorted(name.removeprefix(folder) for name in names if name.startswith(folder))


def test_the_adapters_are_once_in_the_sdist_and_in_every_wheel(
    checkout: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(built(checkout, "wheel")) as archive:
        expected = adapters_in(archive.namelist(), "finlora/_shipped/")
    assert sum(name.endswith("adapter_model.safetensors") for name in expected) == 2
    with tarfile.open(built(checkout, "sdist")) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp_path, filter="data")
    assert len(names) == len(set(names))
    assert adapters_in(names, "adapters_registry/") == expected
    assert not adapters_in(names, "server/finlora/_shipped")
    (unpacked,) = tmp_path.iterdir()
    with zipfile.ZipFile(built(unpacked, "wheel")) as archive:
        assert adapters_in(archive.namelist(), "finlora/_shipped/") == expected
