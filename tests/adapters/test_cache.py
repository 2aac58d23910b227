"""Tiers and pins, with the real loader thread and loads that the tests hold up."""

from collections.abc import Iterator

import pytest

from finlora.errors import (
    AdapterConflictError,
    AdapterError,
    AdapterLoadError,
    EngineStoppedError,
)
from tests.adapters.cache_harness import Harness, Weights, make_adapter


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.gate.set()
    harness.cache.close()
    harness.cache.check_idle()


@pytest.fixture
def borrowing() -> Iterator[Harness]:
    """A cache whose slots read adapters in RAM."""
    harness = Harness(borrows=True)
    yield harness
    harness.cache.close()
    harness.cache.check_idle()


def test_a_wanted_adapter_is_loaded_once_however_often_it_is_wanted(harness: Harness) -> None:
    harness.gate.clear()
    adapter = make_adapter("a")
    for _ in range(5):
        harness.cache.want([adapter])
    assert not harness.cache.is_loaded(adapter)  # and `want` did not wait for the disk
    harness.gate.set()
    assert harness.loaded.acquire(timeout=10)
    harness.cache.want([adapter])
    assert harness.cache.is_loaded(adapter)
    assert harness.loads == ["a"]


class TestExpected:
    """Loads that begin before the engine has heard of the request."""

    def test_the_load_that_was_expected_is_the_one_that_is_wanted(self, harness: Harness) -> None:
        harness.gate.clear()
        adapter = make_adapter("a")
        harness.cache.expect(adapter)
        harness.cache.expect(adapter)
        harness.cache.want([adapter])
        harness.gate.set()
        assert harness.loaded.acquire(timeout=10)
        harness.cache.want([adapter])
        harness.cache.expect(adapter)
        assert harness.slot_of("a") == "a"
        harness.cache.release(adapter)
        assert harness.loads == ["a"]

    def test_no_more_than_fill_the_slots(self, harness: Harness) -> None:
        harness.gate.clear()
        for name in ("a", "b", "c"):
            harness.cache.expect(make_adapter(name))
        assert [r.name for r in harness.cache.residents()] == ["a", "b"]

    @pytest.mark.parametrize("is_broken", [False, True])
    def test_what_a_second_load_gives_is_dropped(self, harness: Harness, is_broken: bool) -> None:
        harness.load("a")
        if is_broken:
            harness.broken.add("a")
        # As when the first load was taken just after it had been looked for in RAM.
        harness.cache._loader.begin(make_adapter("a"))
        assert harness.loaded.acquire(timeout=10)
        assert [r.tiers for r in harness.cache.residents()] == [("ram",)]
        assert harness.cache.ram_bytes == 10
        assert harness.cache.error(make_adapter("a")) is None
        assert harness.events == ["a in ram"]

    def test_a_load_that_fails_is_no_matter_while_a_slot_has_the_adapter(
        self, harness: Harness
    ) -> None:
        harness.load("a")
        assert harness.slot_of("a") == "a"
        harness.load("b", "c")  # `a` leaves RAM, which holds two
        harness.broken.add("a")
        harness.cache._loader.begin(make_adapter("a"))
        assert harness.loaded.acquire(timeout=10)
        assert harness.cache.error(make_adapter("a")) is None
        harness.cache.release(make_adapter("a"))

    def test_nothing_begins_once_the_engine_is_closed(self, harness: Harness) -> None:
        harness.cache.close()
        harness.cache.expect(make_adapter("a"))
        assert harness.cache.residents() == []


def test_the_least_recently_used_slot_is_taken(harness: Harness) -> None:
    harness.load("a", "b", "c")
    for name in ("a", "b", "a", "c"):
        assert harness.slot_of(name) == name
        harness.cache.release(make_adapter(name))
    assert sorted(harness.slots.names.values()) == ["a", "c"]


def test_pinned_slots_are_never_taken(harness: Harness) -> None:
    harness.load("a", "b", "c")
    assert harness.slot_of("a") == "a"
    assert harness.slot_of("b") == "b"
    assert harness.slot_of("c") is None
    harness.cache.release(make_adapter("b"))
    assert harness.slot_of("c") == "c"
    assert sorted(harness.slots.names.values()) == ["a", "c"]
    harness.cache.release(make_adapter("a"))
    harness.cache.release(make_adapter("c"))


def test_ram_is_trimmed_to_its_limit_but_what_is_wanted_stays(harness: Harness) -> None:
    harness.load("a", "b", "c")  # 30 bytes of 25, all wanted
    assert harness.cache.num_in_ram == 3
    harness.load("d")
    assert harness.cache.ram_bytes == 20
    assert harness.cache.is_loaded(make_adapter("d"))
    assert not harness.cache.is_loaded(make_adapter("a"))


def test_a_held_version_survives_eviction_from_everywhere_else(harness: Harness) -> None:
    harness.load("a")
    held = make_adapter("a")
    harness.cache.hold(held)
    for name in ("b", "c", "d", "e"):
        harness.load(name)
        assert harness.slot_of(name) == name
        harness.cache.release(make_adapter(name))
    assert harness.cache.is_loaded(held)
    assert harness.slot_of("a") == "a"
    assert harness.loads.count("a") == 1
    harness.cache.release(held)
    harness.cache.unhold(held)


def test_a_slot_that_holds_the_only_copy_of_a_held_version_is_not_taken(harness: Harness) -> None:
    held = make_adapter("a")
    harness.load("a")
    assert harness.slot_of("a") == "a"
    harness.load("b", "c", "d")  # pushes a out of RAM
    harness.cache.hold(held)
    harness.cache.release(held)
    assert harness.slot_of("b") == "b"
    assert harness.slot_of("c") is None
    harness.cache.unhold(held)
    assert harness.slot_of("c") == "c"
    harness.cache.release(make_adapter("b"))
    harness.cache.release(make_adapter("c"))


def test_what_a_slot_borrows_stays_in_ram_as_long_as_it_does(borrowing: Harness) -> None:
    borrowing.load("a", "b")
    for name in ("a", "b"):
        assert borrowing.slot_of(name) == name
        borrowing.cache.release(make_adapter(name))
    borrowing.load("c", "d")
    borrowing.load("e")  # 30 bytes of 25, and room is made by what is in no slot
    assert borrowing.cache.resident_names == {"slot": ["a", "b"], "ram": ["a", "b", "e"]}
    borrowing.cache.want([])
    assert borrowing.slot_of("e") == "e"
    borrowing.cache.release(make_adapter("e"))
    assert borrowing.cache.resident_names == {"slot": ["b", "e"], "ram": ["b", "e"]}


@pytest.mark.parametrize("name", ["bad", "odd"])
def test_a_failed_load_is_told_once_and_can_be_tried_again(harness: Harness, name: str) -> None:
    harness.broken.add("bad")
    adapter = make_adapter(name)
    harness.cache.want([adapter])
    assert harness.loaded.acquire(timeout=10)
    harness.cache.want([adapter])
    assert isinstance(harness.cache.error(adapter), AdapterError)
    assert harness.cache.error(adapter) is None
    harness.cache.want([adapter])
    assert harness.loaded.acquire(timeout=10)
    assert harness.loads == [name, name]


def test_a_copy_that_fails_is_told_and_the_slot_is_not_lost(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.load("a")
    adapter = make_adapter("a")

    def fail(slot: int, weights: Weights) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(harness.slots, "write", fail)
        assert harness.cache.acquire(adapter) is None
    assert isinstance(harness.cache.error(adapter), AdapterLoadError)
    assert harness.cache.error(adapter) is None
    assert harness.slot_of("a") == "a"
    harness.cache.release(adapter)


def test_the_observer_hears_of_every_move(harness: Harness) -> None:
    harness.load("a", "b", "c")
    for name in ("a", "b", "c"):
        harness.slot_of(name)
        harness.cache.release(make_adapter(name))
    moves = ["a in ram", "b in ram", "c in ram", "a in slot", "b in slot"]
    assert harness.events == [*moves, "a out of slot", "c in slot"]
    assert harness.cache.resident_names == {"slot": ["b", "c"], "ram": ["a", "b", "c"]}
    harness.load("d")
    assert harness.events[-3:] == ["d in ram", "a out of ram", "b out of ram"]
    assert harness.cache.resident_names == {"slot": ["b", "c"], "ram": ["c", "d"]}
    harness.load("a")
    harness.slot_of("a")
    harness.cache.release(make_adapter("a"))
    assert "b" not in harness.cache.resident_names["slot"]


def test_the_observer_hears_of_failed_loads(harness: Harness) -> None:
    harness.broken.add("a")
    harness.load("a")
    assert harness.events == ["a failed"]


class TestAdministration:
    """Loads nobody requested, pins, evictions."""

    def test_everybody_who_asks_for_a_load_waits_for_the_same_one(self, harness: Harness) -> None:
        harness.gate.clear()
        arrivals = [harness.cache.load(make_adapter("a")) for _ in range(3)]
        assert [r.loading for r in harness.cache.residents()] == [True]
        assert not arrivals[0].cancel()  # one who leaves takes nothing from the others
        harness.gate.set()
        assert harness.loaded.acquire(timeout=10)
        assert [r.tiers for r in harness.cache.residents()] == [("ram",)]
        assert all(arrival.result(0) is None for arrival in arrivals)
        assert harness.cache.load(make_adapter("a")).result(0) is None
        assert harness.loads == ["a"]

    def test_a_failed_load_is_told_and_unpins(self, harness: Harness) -> None:
        harness.broken.add("a")
        arrival = harness.cache.pin(make_adapter("a"))
        assert harness.loaded.acquire(timeout=10)
        assert harness.cache.residents() == []
        with pytest.raises(AdapterLoadError):
            arrival.result(0)

    def test_who_waits_for_a_load_is_told_when_the_engine_ends(self, harness: Harness) -> None:
        harness.gate.clear()
        arrival = harness.cache.load(make_adapter("a"))
        harness.cache.abandon_loads(EngineStoppedError("the end"))
        with pytest.raises(EngineStoppedError):
            arrival.result(0)

    def test_a_pinned_adapter_outlives_others_in_ram_and_in_its_slot(
        self, harness: Harness
    ) -> None:
        harness.load("a")
        assert harness.cache.pin(make_adapter("a")).done()
        harness.load("b", "c", "d")
        assert harness.slot_of("a") == "a"
        harness.cache.release(make_adapter("a"))
        for name in ("b", "c", "d", "b"):
            harness.load(name)
            assert harness.slot_of(name) == name
            harness.cache.release(make_adapter(name))
        assert harness.cache.is_resident(make_adapter("a"))
        assert harness.loads.count("a") == 1
        harness.cache.unpin("digest-a")
        harness.load("c", "d")
        for name in ("c", "d"):
            harness.slot_of(name)
            harness.cache.release(make_adapter(name))
        assert not harness.cache.is_resident(make_adapter("a"))

    def test_pins_leave_a_slot_for_the_others(self, harness: Harness) -> None:
        harness.load("a")
        harness.cache.pin(make_adapter("a"))
        with pytest.raises(AdapterConflictError):
            harness.cache.pin(make_adapter("b"))
        harness.cache.unpin("digest-a")
        harness.cache.unpin("digest-a")

    def test_evict(self, harness: Harness) -> None:
        harness.load("a", "b")
        harness.slot_of("a")
        with pytest.raises(AdapterConflictError):
            harness.cache.evict("digest-a")
        harness.cache.release(make_adapter("a"))
        harness.cache.hold(make_adapter("a"))
        with pytest.raises(AdapterConflictError):
            harness.cache.evict("digest-a")
        harness.cache.unhold(make_adapter("a"))
        harness.cache.evict("digest-a")
        harness.cache.evict("digest-a")
        assert [r.name for r in harness.cache.residents()] == ["b"]
        assert harness.cache.ram_bytes == 10
        assert harness.events[-2:] == ["a out of ram", "a out of slot"]
        assert harness.slots.names == {}
        harness.cache.check_idle()

    def test_what_loads_is_not_evicted(self, harness: Harness) -> None:
        harness.gate.clear()
        harness.cache.load(make_adapter("a"))
        with pytest.raises(AdapterConflictError):
            harness.cache.evict("digest-a")
