"""Keeps the libraries below us from talking over our own progress and errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Call it once in an entry point, before anything imports bitsandbytes."""
    # Its import notes that the optional package `kernels` is missing. It must stay missing: with it
    # the same import downloads native code.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Says at every forward of every int8 layer that the layer computes in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers inside the block."""
    # Imported here: whoever only wants `quiet_libraries` must not wait for transformers.
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
