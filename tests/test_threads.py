"""Threads follow what the process may use, not what the machine has."""

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finlora.threads import one_thread, quota, set_threads, usable_cores


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000", math.inf),
        ("150000 100000", 1.5),
        ("", math.inf),
        ("x y", math.inf),
        ("1 0", math.inf),
    ],
)
def test_quota(tmp_path: Path, content: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert quota([tmp_path]) == cores


def test_the_smallest_quota_of_all_groups_holds(tmp_path: Path) -> None:
    slice_, unit = tmp_path / "slice", tmp_path / "slice" / "unit"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("max 100000")
    (slice_ / "cpu.max").write_text("50000 100000")
    assert quota([unit, slice_, tmp_path]) == 0.5


def test_no_groups() -> None:
    assert quota([Path("/no/such/folder")]) == quota([]) == math.inf


def test_affinity_is_respected() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert set_threads(3) == torch.get_num_threads() == 3


def test_the_variable_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads(0) == 3


def test_else_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set_threads(0) == usable_cores()


def test_one_thread_is_for_this_thread_and_for_a_while() -> None:
    set_threads(2)
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    with one_thread():
        assert torch.get_num_threads() == 1
        other.start()
        other.join()
    assert seen == [2]
    assert torch.get_num_threads() == 2
