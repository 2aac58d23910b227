"""The engine: token ids and adapters in, token ids and log-probabilities out.

It knows no HTTP, no text templates and no files.
"""
