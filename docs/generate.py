"""Rewrites the parts of the documentation that code knows better: `make docs`.

A part stands between `<!-- generated: KIND NAME -->` and `<!-- end -->`. With --check nothing is
written; the exit code tells whether everything is current.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from docs.command_tables import command_reference, exit_codes
from docs.field_tables import fields_table, settings_table

FOLDER = Path(__file__).parent
PART = re.compile(r"(<!-- generated: (\w+) ?(\S*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
KINDS: dict[str, Callable[[str], str]] = {
    "command": command_reference,
    "exit_codes": lambda _: exit_codes(),
    "fields": fields_table,
    "settings": lambda _: settings_table(),
}


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check. 1: with --check, something was not current."""
    parser = argparse.ArgumentParser(description="Rewrite the generated parts of docs/*.md.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    stale = [file for file in sorted(FOLDER.glob("*.md")) if not _is_current(file, write=not check)]
    for file in stale:
        sys.stderr.write(f"{file.name} {'is not current: make docs' if check else 'rewritten'}\n")
    return 1 if check and stale else 0


def generated(text: str) -> str:
    """The text with every part made anew."""
    return PART.sub(lambda found: f"{found[1]}{KINDS[found[2]](found[3])}\n{found[5]}", text)


def _is_current(file: Path, *, write: bool) -> bool:
    before = file.read_text("utf-8")
    after = generated(before)
    if write and after != before:
        file.write_text(after, "utf-8")
    return after == before


if __name__ == "__main__":
    sys.exit(main())
