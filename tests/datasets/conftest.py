from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tokenizer
from tests.training.rows import write_rows


@pytest.fixture(scope="session")
def fast() -> PreTrainedTokenizerFast:
    return tokenizer()


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")
