"""What docs/python.md shows runs as it stands, on the default base with the shipped adapters."""

import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, Block, blocks

EXAMPLES = blocks("docs/python.md", "python")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_is_five_lines() -> None:
    assert len(EXAMPLES[0].code.replace("\n\n", "\n").splitlines()) <= 5
    assert run(EXAMPLES[0].code).startswith("positive {'negative': 0.")


@pytest.mark.slow
@pytest.mark.parametrize("block", EXAMPLES[1:], ids=str)
def test_example_runs(block: Block) -> None:
    run(block.code)
