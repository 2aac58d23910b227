"""What makes the registry durable, piece by piece."""

import os
from pathlib import Path

import pytest

from finlora.adapters.files import (
    append_line,
    make_folder,
    move_folder,
    read_bounded,
    replace_file,
    write_file,
    writer,
)
from finlora.errors import AdapterError, AdapterLoadError


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".staging" / "version"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"half")

    with writer(tmp_path) as staging:
        assert list(staging.iterdir()) == []
    assert not (tmp_path / ".staging").exists()


def test_a_failed_change_is_an_adapter_error_and_leaves_no_staging_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be changed"), writer(tmp_path) as staging:
        write_file(staging / "no such folder" / "file", b"")

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_replaced_file_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader, writer(tmp_path) as staging:
        replace_file(path, b"new", staging)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_folder_is_moved_to_a_place_whose_parents_are_made(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "b" / "target"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    move_folder(source, target)
    make_folder(target)

    assert (target / "file").read_bytes() == b"content"
    assert not source.exists()


def test_a_line_cut_short_by_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, b"one")
    with path.open("ab") as file:
        file.write(b"tw")
    append_line(path, b"three")

    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_files_are_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")

    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(AdapterLoadError, match="larger than 4 bytes"):
        read_bounded(path, 4)
    for name in ("absent", "pipe", "."):
        with pytest.raises(AdapterLoadError, match="is missing in"):
            read_bounded(tmp_path / name, 5)


def test_links_are_followed_as_hub_caches_need_it(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "file").symlink_to("blob")

    assert read_bounded(tmp_path / "file", 100) == b"content"
