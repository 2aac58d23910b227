"""Base models on disk: the embedded default, local folders, hub snapshots."""
