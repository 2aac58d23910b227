"""The table of files names what is there."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "loadtest"


def test_every_file_or_its_folder_is_in_the_table() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    rows = text.partition("| file | what it is |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall("`([^`]+)`", row.split(" | ")[0])}
    files = {path.relative_to(FOLDER) for path in FOLDER.rglob("*.py")}
    absent = {str(file) for file in files if not {str(file), f"{file.parent}/"} & named}
    assert absent == set()
    assert [name for name in named if not (FOLDER / name).exists()] == []
