"""Registries that were damaged, copied into, or are none at all: told why; the rest is served."""

from pathlib import Path

import pytest

from finlora.adapters.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from finlora.adapters.registry import AdapterRegistry
from finlora.errors import AdapterError, AdapterLoadError
from tests.adapters.registries import CONFIG, VARIANT, register


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_damaged_files_are_found_and_spoil_no_other_adapter(
    registry: AdapterRegistry, file: str, damage: bytes | None
) -> None:
    adapter, other = register(registry, labels=["a", "b"]), register(registry, name="other")
    path = adapter.folder / file
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)

    with pytest.raises(AdapterLoadError):
        registry.read(registry.resolve("sentiment"))
    assert other in registry.current()


def test_broken_names_are_told_with_the_reason(registry: AdapterRegistry) -> None:
    adapter = register(registry)
    (adapter.folder / CONFIG_FILE).write_bytes(b'{"peft_type": "IA3"}')
    fresh = AdapterRegistry(registry.folder)

    assert fresh.current() == []
    assert "IA3" in str(fresh.broken()["sentiment"])


def test_adapters_are_found_where_the_generation_cannot_be_read(registry: AdapterRegistry) -> None:
    register(registry)
    path = registry.folder / ".generation"
    path.unlink()
    path.mkdir()  # as a file that is another user's: the read fails, for root too
    fresh = AdapterRegistry(registry.folder)

    assert fresh.is_registered("sentiment")
    assert not fresh.is_registered("other")


def test_registering_again_repairs_a_damaged_version(registry: AdapterRegistry) -> None:
    adapter = register(registry)
    (adapter.folder / WEIGHTS_FILE).write_bytes(b"0ne")

    assert registry.read(register(registry)) == b"one"


def test_neither_rollback_nor_promote_leads_to_a_damaged_version(registry: AdapterRegistry) -> None:
    first, second = register(registry), register(registry, weights=b"two")
    (first.folder / WEIGHTS_FILE).write_bytes(b"0ne")

    with pytest.raises(AdapterLoadError, match="do not match their digest"):
        registry.rollback("sentiment")
    with pytest.raises(AdapterLoadError, match="do not match their digest"):
        registry.promote("sentiment", first.digest)
    assert registry.resolve("sentiment") == second


def test_a_plain_peft_folder_copied_in_is_told_about_and_not_served(
    registry: AdapterRegistry,
) -> None:
    register(registry)
    folder = registry.folder / VARIANT / "copied"
    folder.mkdir()
    (folder / CONFIG_FILE).write_bytes(CONFIG)

    assert registry.unregistered() == [folder]
    assert registry.names() == ["sentiment"]
    register(registry, name="copied")
    assert registry.unregistered() == []


def test_registries_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format_version": 2}')
    with pytest.raises(AdapterError, match="registry of format 2; this version reads 1"):
        AdapterRegistry(tmp_path)

    (tmp_path / "format.json").write_text("[]")
    with pytest.raises(AdapterError, match="not a registry format file"):
        AdapterRegistry(tmp_path)


def test_what_the_file_system_refuses_is_an_adapter_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(AdapterError, match="cannot be changed"):
        register(AdapterRegistry(tmp_path / "file" / "registry"))


def test_a_registry_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="is not a folder"):
        AdapterRegistry(tmp_path / "file")
