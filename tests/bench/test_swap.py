import pytest

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.bench.subject import Subject
from finlora.bench.swap import forget_file, swap
from finlora.config import Settings


def test_both_ways_are_timed(settings: Settings, made: Subject) -> None:
    in_ram, from_disk = swap(settings, rank=4, samples=9)
    assert (in_ram.way, from_disk.way) == ("RAM to slot", "disk to slot")
    # A and B of every linear layer, which bfloat16 holds as they are stored.
    numbers = sum(
        4 * (shape.in_features + shape.out_features)
        for shape in made.engine.spec.linear_layers.values()
    )
    assert in_ram.adapter_bytes == 2 * numbers
    assert 0 < in_ram.p50_seconds <= in_ram.p99_seconds
    assert 0 < from_disk.p50_seconds <= from_disk.p99_seconds


def test_every_turn_is_a_read_from_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = AdapterRegistry.read

    def counted(registry: AdapterRegistry, adapter: Adapter) -> bytes:
        reads.append(adapter.name)
        return read(registry, adapter)

    monkeypatch.setattr(AdapterRegistry, "read", counted)
    swap(settings, rank=4, samples=6)
    # All once, and then the cold turns: one that found its adapter in a slot would be missing.
    assert sorted(reads[:5]) == ["a0", "a1", "a2", "a3", "a4"]
    assert len(reads) == 5 + 6


def test_a_forgotten_file_is_still_there(made: Subject) -> None:
    adapter = made.adapters[0]
    forget_file(adapter)
    made.driver.load([adapter])
