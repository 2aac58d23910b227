"""The base's tokenizer over HTTP, in vLLM's shapes."""

import threading
from typing import Any

import httpx
import pytest

from finlora.api.encoding import MAX_CHARACTERS_PER_TOKEN, MAX_INLINE_CHARACTERS
from tests import tiny_models
from tests.api.live import MAX_MODEL_LEN, LiveServer

MAX_PROMPT_CHARACTERS = MAX_MODEL_LEN * MAX_CHARACTERS_PER_TOKEN
FAST = tiny_models.tokenizer()
TEXT = "Zürich's <|im_end|> café 🎉"
CHAT = [{"role": "user", "content": "Shares fell"}]


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_prompt_and_back(http: httpx.Client) -> None:
    ids = FAST.backend_tokenizer.encode(TEXT).ids
    answer = post(http, "/tokenize", model="news", prompt=TEXT)
    assert answer == {
        "count": len(ids),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": ids,
        "token_strs": None,
    }
    assert post(http, "/detokenize", model="news", tokens=ids) == {"prompt": TEXT}


def test_tokens_as_text(http: httpx.Client) -> None:
    answer = post(http, "/tokenize", prompt="Shares fell", return_token_strs=True)
    assert "".join(answer["token_strs"]) == "Shares fell"


@pytest.mark.parametrize("prompt", [True, False])
def test_a_chat(http: httpx.Client, prompt: bool) -> None:
    answer = post(http, "/tokenize", messages=CHAT, add_generation_prompt=prompt)
    expected = FAST.apply_chat_template(CHAT, add_generation_prompt=prompt, return_dict=False)
    assert answer["tokens"] == expected


def test_long_texts_too(http: httpx.Client) -> None:
    text = TEXT * (MAX_PROMPT_CHARACTERS // len(TEXT))
    answer = post(http, "/tokenize", prompt=text, return_token_strs=True)
    assert len(answer["token_strs"]) == answer["count"]
    assert post(http, "/detokenize", tokens=answer["tokens"])["prompt"] == text


def test_texts_that_are_longer_than_any_prompt_are_refused(http: httpx.Client) -> None:
    response = http.post("/tokenize", json={"prompt": "a" * (MAX_PROMPT_CHARACTERS + 1)})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")
    assert error["code"] == "context_length_exceeded"


def test_labels_are_made_when_asked_for_and_beside_the_event_loop(
    server: LiveServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    label = server.state.vocabulary.label

    def watched(token_id: int) -> str:
        threads.append(threading.current_thread().name)
        return label(token_id)

    text = "🎉" * MAX_PROMPT_CHARACTERS  # four tokens each
    with monkeypatch.context() as patch:
        patch.setattr(server.state.vocabulary, "label", watched)
        post(http, "/tokenize", prompt=text)
        assert threads == []
        count = post(http, "/tokenize", prompt=text, return_token_strs=True)["count"]
    assert len(threads) == count > MAX_INLINE_CHARACTERS
    assert "http" not in threads


def test_what_the_tokenizer_is(http: httpx.Client) -> None:
    facts = http.get("/tokenizer_info").json()
    assert facts["chat_template"] == tiny_models.CHAT_TEMPLATE
    assert facts["eos_token"] == tiny_models.END
    assert facts["vocab_size"] == len(FAST)
    assert facts["model_max_length"] == MAX_MODEL_LEN
    assert facts["added_tokens_decoder"]["2"] == {"content": tiny_models.END, "special": True}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
