from pathlib import Path

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.errors import AdapterError
from finlora.model import base_spec
from loadtest.broken import DAMAGES, add_broken
from loadtest.registries import large_registry
from loadtest.subject import copy_registry
from tests.tiny_models import build


def test_broken_adapters_are_listed_and_cannot_be_read(tmp_path: Path) -> None:
    spec = base_spec(str(build("llama", tmp_path / "base")))
    kept = large_registry(tmp_path / "kept", spec, (), 2)
    copy = copy_registry(kept, tmp_path / "copy")
    names = add_broken(copy, spec, len(DAMAGES))
    registry = AdapterRegistry(copy)
    assert {*registry.names()} == {"a0", "a1", *names}
    for name in names:
        with pytest.raises((AdapterError, OSError)):
            registry.read(registry.resolve(name))
    assert registry.read(registry.resolve("a1"))
    # The registry that is kept for other tests was not touched.
    assert {*AdapterRegistry(kept).names()} == {"a0", "a1"}
    assert AdapterRegistry(kept).read(AdapterRegistry(kept).resolve("a0"))
