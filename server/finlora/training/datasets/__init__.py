"""FinLoRA's training and test files, made from their public sources."""
