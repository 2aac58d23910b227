"""How much memory the process may use."""

from pathlib import Path

import psutil
import pytest

from finlora.metrics.gauges import memory_limit_bytes


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("content", "limit"), [("1000000\n", 1_000_000), ("max\n", None)])
def test_a_container_may_use_less(
    tmp_path: Path, file: str, content: str, limit: int | None
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / file).write_text(content)
    assert memory_limit_bytes(tmp_path) == (limit or psutil.virtual_memory().total)


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) == psutil.virtual_memory().total


def test_the_smallest_limit_of_all_groups_holds(tmp_path: Path) -> None:
    unit = tmp_path / "system.slice" / "finlora.service"
    unit.mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/system.slice/finlora.service\n")
    (unit / "memory.max").write_text("2000000\n")
    assert memory_limit_bytes(tmp_path, tmp_path / "membership") == 2_000_000
    (unit.parent / "memory.max").write_text("1000000\n")
    assert memory_limit_bytes(tmp_path, tmp_path / "membership") == 1_000_000
