"""Scores of adapters, measured on the serving path."""
