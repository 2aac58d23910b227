from pathlib import Path

import pytest

from finlora.config import Settings
from finlora.doctor.findings import Level
from finlora.doctor.machine import Processor, check_allocator, check_memory, check_processor

CPUINFO = """processor\t: 0
model name\t: Some Xeon: v2
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_int8

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_TRIM_THRESHOLD_": "2"}


def test_the_processor_is_the_first_one(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO, "utf-8")
    (finding,) = check_processor(Processor.read(file))
    assert finding.facts["model"] == "Some Xeon: v2"
    assert finding.facts["features"] == ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8"]
    assert finding.facts["cores"] >= 1


def test_a_system_without_cpuinfo_has_a_processor_too(tmp_path: Path) -> None:
    processor = Processor.read(tmp_path / "nothing")
    assert processor.model
    (finding,) = check_processor(processor)
    assert "no AVX" in finding.text


def test_memory_is_held_against_the_settings() -> None:
    (small,) = check_memory(Settings(kv_cache_bytes=1, adapter_cache_bytes=1))
    (large,) = check_memory(Settings(kv_cache_bytes=2**60))
    assert small.facts["total_bytes"] == large.facts["total_bytes"]
    assert large.level is Level.NOTE
    assert "--kv-cache-bytes" in (large.next_step or "")


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    settings = Settings(kv_cache_bytes=1, adapter_cache_bytes=1)
    (whole,) = check_memory(settings, tmp_path)
    (tmp_path / "memory.max").write_text(f"{1 << 20}\n", "ascii")
    (limited,) = check_memory(settings, tmp_path)
    assert limited.level is Level.NOTE
    assert limited.facts == {"available_bytes": 1 << 20, "total_bytes": 1 << 20}
    assert "container" in limited.text
    assert "container" not in whole.text


@pytest.mark.parametrize(
    ("maps", "environment", "level", "what"),
    [
        ("7f00 /usr/lib/libjemalloc.so.2", {}, Level.OK, "jemalloc is preloaded"),
        ("7f00 /usr/lib/libc.so.6", THRESHOLDS, Level.OK, "glibc with thresholds"),
        ("7f00 /usr/lib/libc.so.6", {}, Level.NOTE, "glibc returns"),
    ],
)
def test_the_allocator(
    maps: str, environment: dict[str, str], level: Level, what: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.39"))
    file = tmp_path / "maps"
    file.write_text(maps, "utf-8")
    (finding,) = check_allocator(environment, file)
    assert finding.level is level
    assert what in finding.text
    assert (finding.next_step is None) == (level is Level.OK)
