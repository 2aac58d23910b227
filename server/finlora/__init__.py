"""One NF4-quantised base model loaded once, a different LoRA adapter for every request."""

__version__ = "0.1.0"
