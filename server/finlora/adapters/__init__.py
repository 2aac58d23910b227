"""Adapters: the registry on disk, what is accepted into it, and the tiers above it."""
