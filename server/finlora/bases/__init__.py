"""Base models on disk: the embedded default, local folders and hub snapshots. No torch at import."""
