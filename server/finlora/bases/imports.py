"""Imports bitsandbytes without the compiler that it brings along."""


def import_bitsandbytes() -> None:
    """Saves a second of every start, and memory; does nothing when it is imported already.

    Four of its functions are decorated by torch.compile, which imports inductor with all it needs.
    They serve devices that bitsandbytes has no kernels for: there they run uncompiled now.
    """
    # Imported here: whoever imports this module need not wait for them.
    import torch

    compiled = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiled


def _uncompiled(function: object = None, **_: object) -> object:
    """What torch.compile is given, as a decorator with or without arguments."""
    return (lambda decorated: decorated) if function is None else function
