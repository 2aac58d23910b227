"""What `make` installs: the pins and pyproject.toml must not drift apart."""

import subprocess
import tomllib
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
