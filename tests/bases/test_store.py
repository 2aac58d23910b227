"""Cache entries are whole or absent, whatever happens while they are built."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finlora.bases.store import END_BYTES, FILES_FILE, MAX_HASHED_BYTES, ensure, is_intact
from finlora.errors import BaseModelError

# A builder in another process: says when it has written half, and goes on when it is told to.
CHILD = """
import sys
from pathlib import Path
from finlora.bases.store import ensure

def build(folder):
    (folder / "half").write_text("written")
    print("half", flush=True)
    sys.stdin.readline()
    (folder / "rest").write_text("written")

ensure(Path(sys.argv[1]), build)
print("done", flush=True)
"""


def start_child(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def write_one(folder: Path) -> None:
    (folder / "weights").write_bytes(b"0123456789")


def test_builds_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        write_one(folder)

    assert ensure(tmp_path / "entry", build) == ensure(tmp_path / "entry", build)
    assert len(calls) == 1
    assert (tmp_path / "entry" / "weights").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"012345678"),
        lambda file: file.write_bytes(b"0123456780"),
        lambda file: file.unlink(),
        lambda file: (file.parent / FILES_FILE).write_text("{"),
        lambda file: (file.parent / FILES_FILE).unlink(),
        lambda file: (file.parent / "stranger").write_text("x"),
    ],
    ids=["shorter", "changed", "missing", "broken list", "no list", "extra file"],
)
def test_damage_is_found_and_repaired(tmp_path: Path, damage: object) -> None:
    folder = ensure(tmp_path / "entry", write_one)
    assert callable(damage)
    damage(folder / "weights")
    assert not is_intact(folder)
    ensure(folder, write_one)
    assert is_intact(folder)
    assert sorted(path.name for path in folder.iterdir()) == [FILES_FILE, "weights"]


def test_of_large_files_both_ends_are_checked(tmp_path: Path) -> None:
    size = MAX_HASHED_BYTES + 1

    def build(folder: Path) -> None:
        with (folder / "large").open("wb") as file:
            file.truncate(size)  # sparse: takes no space

    folder = ensure(tmp_path / "entry", build)
    for offset in (END_BYTES - 1, size - END_BYTES):
        with (folder / "large").open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
            file.flush()
            assert not is_intact(folder)
            file.seek(offset)
            file.write(b"\0")
        assert is_intact(folder)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_one(folder)
        raise BaseModelError("no")

    with pytest.raises(BaseModelError, match=r"^no$"):
        ensure(tmp_path / "entry", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(BaseModelError, match="the disk is full"):
        ensure(tmp_path / "entry", fill)


def test_an_unusable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BaseModelError, match="cannot write"):
        ensure(tmp_path / "file" / "entry", write_one)


def test_a_killed_builder_leaves_no_entry(tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    child = start_child(folder)
    with child:
        assert read_line(child) == "half"
        assert not folder.exists()
        child.kill()
    ensure(folder, write_one)
    assert sorted(json.loads((folder / FILES_FILE).read_text())) == ["weights"]


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    with start_child(folder) as first, start_child(folder) as second:
        for child in (first, second):
            assert child.stdin is not None
            child.stdin.write("go on\n")
            child.stdin.flush()
        lines = sorted(
            line for child in (first, second) for line in (child.communicate()[0]).split()
        )
    assert lines == ["done", "done", "half"]
    assert is_intact(folder)
