"""QLoRA training on exactly the base that is served."""
