"""Limits come from the process's own control group and from all above it."""

from pathlib import Path

import pytest

from finlora.cgroup import MEMBERSHIP, ROOT, groups


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "0::/system.slice/finlora.service\n",
            ["system.slice/finlora.service", "system.slice", ""],
        ),
        ("4:memory:/docker/1\n1:cpu:/\n0::/user.slice\n", ["user.slice", ""]),
        ("0::/\n", [""]),
        ("0::/../other\n", [""]),
        ("4:memory:/docker/1\n", [""]),
        ("", [""]),
    ],
    ids=["systemd", "both versions", "container", "outside", "version 1", "empty"],
)
def test_from_its_own_group_upwards(tmp_path: Path, content: str, expected: list[str]) -> None:
    (tmp_path / "membership").write_text(content)
    found = groups(tmp_path / "root", tmp_path / "membership")
    assert found == [tmp_path / "root" / folder for folder in expected]


def test_without_control_groups_there_is_the_root(tmp_path: Path) -> None:
    assert groups(tmp_path, tmp_path / "no file") == [tmp_path]


def test_of_this_process_the_last_is_the_root() -> None:
    assert groups()[-1] == ROOT
    assert MEMBERSHIP.is_absolute()
