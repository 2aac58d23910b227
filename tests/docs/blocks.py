"""The examples of the documentation, as code."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """One fenced example and the line it stands on."""

    file: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def blocks(file: str, language: str) -> list[Block]:
    """Every example of a language in a file of the repository."""
    text = (ROOT / file).read_text("utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(file, text.count("\n", 0, m.start()) + 1, m[1]) for m in found]
