"""The log of changes."""

import getpass
import re
from pathlib import Path

from finlora.adapters.log import ChangeLog


def test_a_change_tells_who_what_and_when(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path)
    assert log.read() == []
    log.append("register", "sentiment", variant="v", digest="d")

    (change,) = log.read()
    assert (change.action, change.name, change.variant, change.digest) == (
        *("register", "sentiment", "v", "d"),
    )
    assert change.who.startswith(f"{getpass.getuser()}@")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", change.time)
    assert "detail" not in log.path.read_text()


def test_lines_that_are_no_changes_are_passed_over(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, "me")
    log.append("remove", "first")
    with log.path.open("ab") as file:
        file.write(b'{"half\n[1]\n{"unknown": 1}\n\xff\n')
    log.append("remove", "second")

    assert [change.name for change in log.read()] == ["first", "second"]
