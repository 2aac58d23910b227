"""One NF4-quantised base model loaded once, a different LoRA adapter for every request."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finlora.offline.engine import Engine as Engine
    from finlora.offline.results import Classification as Classification
    from finlora.offline.results import Completion as Completion
else:
    _HOMES = {
        "Engine": "finlora.offline.engine",
        "Classification": "finlora.offline.results",
        "Completion": "finlora.offline.results",
    }

    def __getattr__(name: str) -> object:
        """Import what is asked for, when it is asked for: `import finlora` stays instant."""
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module 'finlora' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
