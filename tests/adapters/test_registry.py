"""The registry's promises: immutable versions, one pointer, refusals that change nothing."""

import json
import multiprocessing
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finlora.adapters.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    NAME_PATTERN,
    WEIGHTS_FILE,
    Manifest,
    content_digest,
)
from finlora.adapters.registry import AdapterRegistry
from finlora.config import DEFAULT_BASE
from finlora.errors import (
    AdapterError,
    AdapterNotFoundError,
)
from tests.adapters.registries import CONFIG, VARIANT, register, tree_hash


def test_a_version_is_a_plain_peft_folder_with_a_manifest(registry: AdapterRegistry) -> None:
    manifest = Manifest(labels=["no", "yes"])
    files = {"README.md": b"# card"}
    adapter = registry.register("sentiment", VARIANT, CONFIG, b"one", manifest, files)

    assert adapter.folder == registry.folder / VARIANT / "sentiment" / "versions" / adapter.digest
    assert {path.name: path.read_bytes() for path in adapter.folder.iterdir()} == {
        CONFIG_FILE: CONFIG,
        WEIGHTS_FILE: b"one",
        "README.md": b"# card",
        MANIFEST_FILE: (adapter.folder / MANIFEST_FILE).read_bytes(),
    }
    assert adapter.manifest == manifest
    assert registry.read(adapter) == b"one"
    assert json.loads((registry.folder / "format.json").read_bytes()) == {"format_version": 1}


def test_a_name_means_its_latest_version_and_a_digest_means_the_one(
    registry: AdapterRegistry,
) -> None:
    first, second = register(registry), register(registry, weights=b"two")

    assert registry.resolve("sentiment") == second
    assert registry.resolve(f"sentiment@{first.digest}") == first
    assert registry.resolve(f"sentiment@{first.digest[:8]}") == first
    assert registry.versions("sentiment") == [second, first]
    assert registry.current() == [second]


@pytest.mark.parametrize("reference", ["other", "sentiment@", "sentiment@12", "sentiment@00000000"])
@pytest.mark.parametrize("suffix", ["", "@0000000000", "/../sentiment", "\0"])
def test_unknown_references_are_not_found(
    registry: AdapterRegistry, reference: str, suffix: str
) -> None:
    register(registry)

    with pytest.raises(AdapterNotFoundError):
        registry.resolve(reference + suffix)


def test_an_empty_or_absent_registry_is_readable_and_stays_as_it_is(tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "absent")

    assert (registry.current(), registry.generation(), registry.aliases()) == ([], 0, {})
    assert not registry.folder.exists()


def test_the_digest_covers_what_changes_answers_and_no_more() -> None:
    plain = content_digest(CONFIG, b"one", Manifest())

    assert content_digest(CONFIG, b"one", Manifest(scores={"accuracy": 1}, licence="MIT")) == plain
    others = [
        content_digest(CONFIG + b" ", b"one", Manifest()),
        content_digest(CONFIG, b"two", Manifest()),
        content_digest(CONFIG + b"o", b"ne", Manifest()),
        content_digest(CONFIG, b"one", Manifest(labels=["a", "b"])),
        content_digest(CONFIG, b"one", Manifest(prompt_template="{input}")),
        content_digest(CONFIG, b"one", Manifest(temperature=2.0)),
        content_digest(CONFIG, b"one", Manifest(eos_token_ids=[2])),
    ]
    assert len({plain, *others}) == 8


def test_the_same_content_is_stored_once_and_its_facts_are_kept(registry: AdapterRegistry) -> None:
    first = register(registry, licence="MIT")
    again = register(registry, licence="other")

    assert again == first
    assert registry.digests("sentiment") == [first.digest]


def test_rollback_returns_to_what_was_served_before(registry: AdapterRegistry) -> None:
    first, second = register(registry), register(registry, weights=b"two")

    assert registry.rollback("sentiment") == first
    assert registry.resolve("sentiment") == first
    with pytest.raises(AdapterError, match="no earlier version"):
        registry.rollback("sentiment")
    assert registry.promote("sentiment", second.digest[:12]) == second
    assert registry.rollback("sentiment") == first


def test_a_removed_name_is_gone_but_those_who_hold_it_can_finish(registry: AdapterRegistry) -> None:
    adapter = register(registry)
    registry.remove("sentiment")

    for reference in ("sentiment", f"sentiment@{adapter.digest}"):
        with pytest.raises(AdapterNotFoundError):
            registry.resolve(reference)
    assert registry.names() == []
    assert registry.read(adapter) == b"one"
    assert registry.promote("sentiment", adapter.digest) == adapter
    assert registry.resolve("sentiment") == adapter


def test_a_removed_name_that_became_an_alias_does_not_come_back(registry: AdapterRegistry) -> None:
    adapter, other = register(registry), register(registry, name="other")
    registry.remove("sentiment")
    registry.alias("sentiment", "other")

    with pytest.raises(AdapterError, match="is an alias of 'other'"):
        registry.promote("sentiment", adapter.digest)
    assert registry.resolve("sentiment") == other


def test_prune_keeps_what_is_served_and_as_many_earlier_versions_as_asked(
    registry: AdapterRegistry,
) -> None:
    versions = [register(registry, weights=bytes([i])) for i in range(4)]
    gone = register(registry, name="gone")
    registry.remove("gone")

    pruned = registry.prune(keep=1)

    assert set(pruned) == {
        f"sentiment@{versions[0].digest}",
        f"sentiment@{versions[1].digest}",
        f"gone@{gone.digest}",
    }
    assert registry.versions("sentiment") == [versions[3], versions[2]]
    assert not (registry.folder / VARIANT / "gone").exists()
    assert registry.rollback("sentiment") == versions[2]
    assert registry.prune(keep=0) == [f"sentiment@{versions[3].digest}"]


def test_aliases_follow_the_name(registry: AdapterRegistry) -> None:
    register(registry)
    registry.alias("prod", "sentiment")
    second = register(registry, weights=b"two")

    assert registry.aliases() == {"prod": "sentiment"}
    assert registry.resolve("prod") == second
    assert registry.resolve(f"prod@{second.digest[:10]}").name == "sentiment"
    registry.alias("prod", None)
    with pytest.raises(AdapterNotFoundError, match="'prod'"):
        registry.resolve("prod")


REFUSALS: dict[str, tuple[Callable[[AdapterRegistry], object], str]] = {
    "name": (lambda r: register(r, name="../up"), "does not match"),
    "case": (lambda r: register(r, name="Upper"), "does not match"),
    "base": (lambda r: register(r, name=DEFAULT_BASE), "name of a base model"),
    "own base": (lambda r: register(r, name="my-base", base_name="my-base"), "name of a base"),
    "other base": (lambda r: register(r, name="known-base"), "name of a base model"),
    "alias name": (lambda r: register(r, name="prod"), "is an alias of 'sentiment'"),
    "variant": (
        lambda r: r.register("new", "a/b", CONFIG, b"", Manifest()),
        "variant 'a/b' does not match",
    ),
    "taken": (
        lambda r: r.register("sentiment", "8bits_r8", CONFIG, b"x", Manifest()),
        "taken by 4bits_r4/sentiment; names are unique",
    ),
    "config": (lambda r: r.register("new", VARIANT, b"{}", b"", Manifest()), "peft_type"),
    "file": (
        lambda r: r.register("new", VARIANT, CONFIG, b"", Manifest(), {"../x": b""}),
        "file name '../x' does not match",
    ),
    "manifest": (lambda r: register(r, task="x" * 5_000_000), "manifest.json would be larger"),
    "text": (lambda r: register(r, licence="\ud800"), "manifest.json cannot be written"),
    "rollback": (lambda r: r.rollback("sentiment"), "no earlier version"),
    "rollback unknown": (lambda r: r.rollback("new"), "no adapter 'new'"),
    "promote": (lambda r: r.promote("sentiment", "0" * 8), "no version"),
    "promote unknown": (lambda r: r.promote("new", "0" * 8), "no variant holds"),
    "remove": (lambda r: r.remove("new"), "no adapter 'new'"),
    "alias unknown": (lambda r: r.alias("other", "new"), "no adapter 'new'"),
    "alias taken": (lambda r: r.alias("sentiment", "sentiment"), "is taken by"),
    "alias base": (lambda r: r.alias(DEFAULT_BASE, "sentiment"), "name of a base model"),
    "alias form": (lambda r: r.alias("A b", "sentiment"), "does not match"),
    "no alias": (lambda r: r.alias("other", None), "no alias 'other'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_change_leaves_the_registry_as_it_was(
    registry: AdapterRegistry, case: str
) -> None:
    change, reason = REFUSALS[case]
    register(registry, base_name="known-base")
    registry.alias("prod", "sentiment")
    before = tree_hash(registry.folder)

    with pytest.raises(AdapterError, match=re.escape(reason)):
        change(registry)

    assert tree_hash(registry.folder) == before


def test_every_change_raises_the_generation_and_is_logged(registry: AdapterRegistry) -> None:
    first = register(registry)
    register(registry, weights=b"two")
    registry.rollback("sentiment")
    registry.alias("prod", "sentiment")
    registry.remove("sentiment")
    registry.promote("sentiment", first.digest)
    registry.prune(keep=0)

    changes = registry.log.read()
    assert registry.generation() == len(changes) == 7
    assert [change.action for change in changes] == [
        *("register", "register", "rollback", "alias", "remove", "promote", "prune")
    ]
    assert {change.who for change in changes} == {"test"}
    assert changes[2].digest == first.digest


def test_changes_by_another_process_are_seen_at_once(registry: AdapterRegistry) -> None:
    other = AdapterRegistry(registry.folder)
    assert registry.current() == []

    first = register(other)
    assert registry.resolve("sentiment") == first
    second = register(other, weights=b"two")
    assert registry.resolve("sentiment") == second
    register(other, name="news")
    assert registry.names() == ["news", "sentiment"]
    other.remove("news")
    assert registry.names() == ["sentiment"]


def test_changes_made_by_hand_are_seen(registry: AdapterRegistry) -> None:
    first, second = register(registry), register(registry, weights=b"two")
    assert registry.resolve("sentiment") == second
    folder = registry.folder / VARIANT / "sentiment"

    (folder / "current").write_text(first.digest + "\n")
    assert registry.resolve("sentiment") == first
    folder.rename(folder.with_name("renamed"))
    assert registry.names() == ["renamed"]


def _register_many(folder: Path, name: str) -> None:
    registry = AdapterRegistry(folder, who=name)
    for i in range(5):
        register(registry, name=f"{name}-{i}")
        register(registry, name="shared", weights=f"{name}-{i}".encode())


def test_writers_in_several_processes_and_threads_lose_nothing(registry: AdapterRegistry) -> None:
    context = multiprocessing.get_context("spawn")
    workers: list[multiprocessing.process.BaseProcess | threading.Thread] = [
        *(context.Process(target=_register_many, args=(registry.folder, f"p{i}")) for i in (0, 1)),
        *(threading.Thread(target=_register_many, args=(registry.folder, f"t{i}")) for i in (0, 1)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert len(registry.current()) == 4 * 5 + 1
    assert len(registry.versions("shared")) == 4 * 5
    assert registry.generation() == len(registry.log.read()) == 4 * 5 * 2


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=100,
    deadline=None,  # every example waits for the disk
)
@given(st.text(max_size=100) | st.from_regex(NAME_PATTERN))
@example("a\n")
@example("a" * 97)
@example(".hidden")
def test_a_name_of_any_form_is_registered_as_it_is_or_refused(tmp_path: Path, name: str) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    try:
        adapter = register(registry, name=name)
    except AdapterError:
        assert re.fullmatch(NAME_PATTERN, name) is None or name in registry.aliases()
        return
    assert adapter.folder.is_relative_to(registry.folder / VARIANT / name)
    assert registry.resolve(name) == adapter
    registry.remove(name)
