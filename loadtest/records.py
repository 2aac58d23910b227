"""Figures as JSON that every program can read."""

import json
import math
from typing import Any


def to_json(record: Any, *, indent: int | None = None) -> str:
    """With a line end. JSON has no word for what is infinite or not a number: null."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
