from pathlib import Path

from finlora.adapters.registry import AdapterRegistry
from finlora.model import base_spec
from loadtest.peers.make_adapters import make_adapters
from loadtest.registries import CHUNK, large_registry
from tests.tiny_models import build


def test_a_large_registry_begins_with_the_given_folders_and_is_made_once(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base")
    folders, spec = make_adapters(base, tmp_path / "peft", 2), base_spec(str(base))
    count = CHUNK + 4
    folder = large_registry(tmp_path / "cache", spec, folders, count)
    registry = AdapterRegistry(folder)
    assert set(registry.names()) == {f"a{i}" for i in range(count)}
    assert not registry.broken()
    given = (folders[1] / "adapter_model.safetensors").read_bytes()
    assert registry.read(registry.resolve("a1")) == given
    assert len(registry.read(registry.resolve(f"a{count - 1}"))) > 0
    stamp = folder.stat().st_mtime_ns
    assert large_registry(tmp_path / "cache", spec, folders, count) == folder
    assert folder.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
