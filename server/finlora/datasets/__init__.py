"""Rows to train on and to judge by: read from files, or made from their public sources."""
