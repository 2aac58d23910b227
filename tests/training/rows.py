"""A few dozen rows that a tiny model can learn by heart, and runs over them."""

import json
from pathlib import Path

from finlora.datasets.rows import Row
from finlora.prompts import sentiment_template

LABELS = ("negative", "neutral", "positive")
TEMPLATE = sentiment_template("news", LABELS)
VERBS = {"negative": "fell", "neutral": "was unchanged", "positive": "rose"}
SUBJECTS = (
    "Profit", "Revenue", "The share", "The dividend", "Output", "The margin", "Turnover",
    "Demand", "The order book", "Cash flow", "The rating", "The bank's capital",
)  # fmt: skip


def make_rows(when: str = "") -> list[Row]:
    """Three labels, equally often."""
    return [
        Row(TEMPLATE.render(f"{subject} {verb} {when}".rstrip() + "."), label)
        for subject in SUBJECTS
        for label, verb in VERBS.items()
    ]


def write_rows(file: Path, rows: list[Row] | None = None) -> Path:
    """Rows as FinLoRA's JSON lines."""
    lines = [
        json.dumps({"context": row.context, "target": row.target}) for row in rows or make_rows()
    ]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file
