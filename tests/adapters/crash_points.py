"""Run as a program: kills a writer before each of its file operations and inspects what is left.

For every change of the registry and every file operation in it, a forked child makes the change and
kills itself (SIGKILL) at that operation. Prints the number of kills per change as JSON.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry

CONFIG = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'
FILE_EVENTS = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY  # a folder is opened to be synced or listed
Change = Callable[[AdapterRegistry], object]


def register(registry: AdapterRegistry, name: str, weights: bytes) -> Adapter:
    return registry.register(name, "4bits_r4", CONFIG, weights, Manifest(), {"README.md": b"#"})


def rollback_to_first(registry: AdapterRegistry) -> None:
    first = registry.digests("sentiment")[-1]
    registry.promote("sentiment", first)


CHANGES: dict[str, Change] = {
    "register": lambda registry: register(registry, "new", b"new"),
    "replace": lambda registry: register(registry, "sentiment", b"three"),
    "promote": rollback_to_first,
    "rollback": lambda registry: registry.rollback("sentiment"),
    "remove": lambda registry: registry.remove("sentiment"),
    "alias": lambda registry: registry.alias("other", "sentiment"),
    "prune": lambda registry: registry.prune(0),
}


def prepare(folder: Path) -> None:
    registry = AdapterRegistry(folder)
    register(registry, "sentiment", b"one")
    register(registry, "sentiment", b"two")
    registry.alias("prod", "sentiment")


def state(folder: Path) -> tuple[object, ...]:
    """What a reader that starts now gets; fails when anything it is offered is broken."""
    registry = AdapterRegistry(folder)
    assert registry.broken() == {}
    served = {adapter.name: registry.read(adapter) for adapter in registry.current()}
    for name in served:
        for adapter in registry.versions(name):
            registry.read(adapter)
    registry.log.read()
    return served, registry.aliases()


def kill_at(operation: int, change: Change, folder: Path) -> bool:
    """Make the change in a child that dies before its n-th file operation; whether it did."""
    pid = os.fork()
    if pid == 0:
        countdown = [operation]

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in FILE_EVENTS or (event == "open" and args[2] & WRITING):
                countdown[0] -= 1
                if countdown[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        registry = AdapterRegistry(folder)
        sys.addaudithook(hook)
        change(registry)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def count_kills(change: Change, root: Path) -> int:
    prepare(root / "before")
    shutil.copytree(root / "before", root / "after")
    change(AdapterRegistry(root / "after"))
    before, after = state(root / "before"), state(root / "after")
    kills = 0
    while True:
        folder = root / str(kills)
        shutil.copytree(root / "before", folder)
        killed = kill_at(kills, change, folder)
        found = state(folder)
        assert found in (before, after), (kills, found)
        register(AdapterRegistry(folder), "later", b"later")
        assert not (folder / ".staging").exists()
        if not killed:
            assert found == after
            return kills
        kills += 1


if __name__ == "__main__":
    folders = {name: Path(sys.argv[1]) / name for name in CHANGES}
    sys.stdout.write(json.dumps({n: count_kills(CHANGES[n], folders[n]) for n in CHANGES}))
