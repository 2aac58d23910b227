"""What docs/python.md shows runs as it stands, on the default base with the shipped adapters."""

import ast
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
    label, _, text = run(EXAMPLES[0].code).partition(" ")
    probabilities = ast.literal_eval(text)
    assert label == "positive" == max(probabilities, key=probabilities.__getitem__)
    assert sum(probabilities.values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("block", EXAMPLES[1:], ids=str)
def test_example_runs(block: Block) -> None:
    run(block.code)
