"""What tests of several packages need; above all a cache of its own for every test run.

So that none of their bases shows up among the user's.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finlora.bases.quiet import quiet_libraries
from finlora.config import cache_folder
from tests.default_base import FINGERPRINT
from tests.tiny_models import tokenizer
from tests.training.rows import write_rows


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shares with the user's cache only the embedded base, which takes long to fetch."""
    quiet_libraries()
    own, users = tmp_path_factory.mktemp("cache"), cache_folder()
    (users / "bases").mkdir(parents=True, exist_ok=True)
    (own / "bases").symlink_to((users / "bases").resolve())
    (own / "quantized").mkdir()
    for checkpoint in users.glob(f"quantized/*-{FINGERPRINT[:16]}-*"):
        (own / "quantized" / checkpoint.name).symlink_to(checkpoint.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINLORA_CACHE", str(own))
        yield own


@pytest.fixture(scope="session")
def fast() -> PreTrainedTokenizerFast:
    return tokenizer()


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")
