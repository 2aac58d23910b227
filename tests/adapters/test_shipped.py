"""Which registry is used, and what a new one starts with."""

import os
from pathlib import Path

import pytest

from finlora.adapters.adapter import Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.shipped import open_registry, seed
from finlora.config import Settings

CONFIG = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'


@pytest.fixture
def shipped(tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "shipped")
    registry.register("old", "v", CONFIG, b"0", Manifest())
    registry.remove("old")
    for weights in (b"1", b"2"):
        registry.register("news", "v", CONFIG, weights, Manifest(), {"README.md": b"# card"})
    return registry


def test_a_seeded_registry_serves_the_same_versions(
    shipped: AdapterRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "registry"
    seed(folder, shipped.folder)

    registry = AdapterRegistry(folder)
    assert registry.names() == ["news"]
    assert registry.digests("news") == [shipped.resolve("news").digest]
    assert registry.read(registry.resolve("news")) == b"2"
    assert (registry.resolve("news").folder / "README.md").read_bytes() == b"# card"
    assert [path.name for path in folder.parent.iterdir()] == ["registry"]


def test_seeding_gives_way_to_a_process_that_was_quicker(
    shipped: AdapterRegistry, tmp_path: Path
) -> None:
    quicker = AdapterRegistry(tmp_path / "data" / "registry")
    quicker.register("own", "v", CONFIG, b"own", Manifest())
    seed(quicker.folder, shipped.folder)

    assert quicker.names() == ["own"]
    assert [path.name for path in quicker.folder.parent.iterdir()] == ["registry"]


def test_what_another_process_has_put_aside_is_left_alone(
    shipped: AdapterRegistry, tmp_path: Path
) -> None:
    # In containers that share a volume the processes' numbers are the same.
    aside = tmp_path / "data" / f"registry.{os.getpid()}"
    AdapterRegistry(aside).register("half", "v", CONFIG, b"1", Manifest())
    seed(tmp_path / "data" / "registry", shipped.folder)

    assert AdapterRegistry(tmp_path / "data" / "registry").names() == ["news"]
    assert AdapterRegistry(aside).names() == ["half"]


def test_a_user_without_a_registry_gets_the_shipped_adapters_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shipped = AdapterRegistry(Path(__file__).parents[2] / "adapters_registry")

    registry = open_registry(Settings())
    assert registry.folder == tmp_path / "data" / "finlora" / "adapters_registry"
    assert registry.names() == shipped.names()
    for name in registry.names():
        registry.remove(name)
    assert open_registry(Settings()).names() == []


def test_a_named_registry_is_taken_as_it_is(tmp_path: Path) -> None:
    registry = open_registry(Settings(registry=tmp_path / "mine"))

    assert registry.names() == []
    assert not registry.folder.exists()
