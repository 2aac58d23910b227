"""Other people's clients, run as programs of their own environment."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks

FOLDER = Path(__file__).parent
DOCUMENT = "docs/clients.md"
Run = Callable[..., str]


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the environment's programs, which `make clients` makes."""
    environment = Path(f"{sys.prefix}-clients")
    if not (environment / ".created").is_file():
        pytest.skip("other people's clients are not installed: make clients")
    return environment / "bin"


@pytest.fixture
def run(programs: Path, tmp_path: Path) -> Run:
    """Run a program of the environment in an empty folder; what it prints. It reaches no hub."""
    environment = {name: os.environ[name] for name in ("LANG", "PATH") if name in os.environ}
    environment |= {
        "GUIDELLM__MAX_WORKER_PROCESSES": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(programs / program), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    return run


def example(language: str, word: str) -> Block:
    """The one documented example that has this word."""
    (found,) = [block for block in blocks(DOCUMENT, language) if word in block.code]
    return found


def ours(block: Block, url: str, **others: str) -> str:
    """The example with our server and models in place of the documented ones, and other parts."""
    code = block.code
    names = {"smollm2-135m-instruct": "tiny-llama", "news-sentiment": "news"}
    for name, value in names.items():
        code = code.replace(name, value)
    for name, value in {"http://localhost:8000": url, **others}.items():
        assert name in code
        code = code.replace(name, value)
    return code
