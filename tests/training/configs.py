"""A file with one configuration, `verbs`, that a tiny base learns in a second."""

import json
from pathlib import Path
from typing import Any

from tests.training.rows import TEMPLATE

CONFIG: dict[str, Any] = {
    "dataset_path": "rows.jsonl",
    "lora_r": 8,
    "lora_alpha": 16,
    "learning_rate": 0.01,
    "num_epochs": 20,
    "batch_size": 8,
    "val_fraction": 0.3,
    "task": "sentiment",
    "prompt_template": TEMPLATE.text,
    "licence": "Apache-2.0",
    "sources": [{"name": "Rows of the test", "licence": "CC0"}],
}


def write_config(folder: Path, base: Path, **fields: Any) -> Path:
    """The file, in a folder that holds its rows."""
    file = folder / "configs.json"
    file.write_text(json.dumps({"verbs": {**CONFIG, "base_model": str(base), **fields}}))
    return file


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder, which need not be there."""
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
