"""What is installed, beside what finlora needs. Imports none of it."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

import finlora
from finlora.doctor.findings import Finding, note, ok, problem

SHOWN = ("torch", "bitsandbytes", "transformers", "peft", "safetensors", "tokenizers", "fastapi")


def check_libraries() -> Iterator[Finding]:
    """Versions of what computes and serves, and what does not fit."""
    shown = {name: _version(name) for name in SHOWN}
    present = ", ".join(f"{name} {found}" for name, found in shown.items() if found)
    python = platform.python_version()
    yield ok(
        "versions",
        f"finlora {finlora.__version__}, Python {python}, {present}",
        finlora=finlora.__version__,
        python=python,
        **shown,
    )
    try:
        needed = [Requirement(line) for line in requires("finlora") or ()]
    except PackageNotFoundError:
        yield note("versions", "finlora itself is not installed: its needs are not checked")
        return
    for requirement in needed:
        yield from _check(requirement)


def check_kernels_package() -> Iterator[Finding]:
    """The one package that must not be there."""
    if find_spec("kernels") is not None:
        yield problem(
            "versions",
            "the package `kernels` is installed: importing bitsandbytes then downloads native code",
            "pip uninstall kernels",
        )


def _check(requirement: Requirement) -> Iterator[Finding]:
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    found = _version(requirement.name)
    if found is None:
        text = f"{requirement.name} is not installed"
    elif not requirement.specifier.contains(found, prereleases=True):
        text = f"{requirement.name} is {found}, needed is {requirement.specifier}"
    else:
        return
    yield problem("versions", text, f"pip install '{requirement.name}{requirement.specifier}'")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
