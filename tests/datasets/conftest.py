import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tokenizer


@pytest.fixture(scope="session")
def fast() -> PreTrainedTokenizerFast:
    return tokenizer()
