"""Labels and their probabilities, checked against scores of whole texts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save

from finlora.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter, Manifest
from finlora.prompts import TextEncoder
from tests import tiny_models
from tests.api.live import LiveServer

TOKENIZER = tiny_models.tokenizer()
ENCODER = TextEncoder(TOKENIZER)
END = 2
TEMPLATE = "Input: {input}\nAnswer: "
TEXTS = ["Shares fell 4.2 percent", "Zürich's insurer café 🎉", "", "<|im_end|> Shares {fell}"]
LABELS = ["negative", "neutral", "positive", "positive outlook"]
BODY: dict[str, Any] = {
    "model": "news",
    "input": TEXTS,
    "labels": LABELS,
    "template": TEMPLATE,
    "return_probabilities": True,
}


@contextmanager
def described(server: LiveServer, name: str, **fields: Any) -> Iterator[Adapter]:
    """The adapter `news` once more, under a manifest with these fields."""
    registry = server.state.registry
    news = registry.resolve("news")
    manifest = Manifest.model_validate(news.manifest.model_dump() | fields)
    weights = save(load_file(news.folder / WEIGHTS_FILE))
    adapter = registry.register(
        name, "tiny", (news.folder / CONFIG_FILE).read_bytes(), weights, manifest
    )
    try:
        yield adapter
    finally:
        registry.remove(name)


def classify(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/classify", json=BODY | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scored(http: httpx.Client, model: str, text: str, labels: list[str]) -> list[float]:
    """Log-probability of each label and its end as the last part of a prompt."""
    prompt = ENCODER.encode_target(TEMPLATE.replace("{input}", text))
    answers = [[*ENCODER.encode_target(label), END] for label in labels]
    body = {
        "model": model,
        "prompt": [prompt + answer for answer in answers],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
    }
    choices = http.post("/v1/completions", json=body).json()["choices"]
    rows = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return [math.fsum(row[-len(answer) :]) for row, answer in zip(rows, answers, strict=True)]


def normalised(logprobs: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(value / temperature) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("model", ["tiny-llama", "news", "tiny-llama:tweets"])
def test_every_label_has_its_exact_probability(http: httpx.Client, model: str) -> None:
    answer = classify(http, model=model)
    assert answer["object"] == "list"
    assert answer["model"] == model
    assert answer["id"].startswith("classify-")
    assert [row["index"] for row in answer["data"]] == list(range(len(TEXTS)))
    for text, row in zip(TEXTS, answer["data"], strict=True):
        expected = normalised(scored(http, model, text, LABELS))
        assert list(row["probabilities"]) == LABELS
        assert [*row["probabilities"].values()] == pytest.approx(expected, rel=0.02, abs=1e-6)
        assert row["probability"] == max(row["probabilities"].values())
        assert row["probabilities"][row["label"]] == row["probability"]
    num_prompt = sum(len(ENCODER.encode_target(TEMPLATE.replace("{input}", t))) for t in TEXTS)
    assert answer["usage"]["prompt_tokens"] == num_prompt


def test_one_text_is_a_list_of_one(http: httpx.Client) -> None:
    (row,) = classify(http, input=TEXTS[0], return_probabilities=False)["data"]
    assert row["probabilities"] is None
    assert row["label"] == classify(http)["data"][0]["label"]


def test_what_only_the_client_needs_is_taken(http: httpx.Client) -> None:
    told = classify(http, user="me", metadata={"desk": "rates"})["data"]
    assert told[0]["label"] == classify(http)["data"][0]["label"]


def test_labels_and_template_are_the_adapters_own(http: httpx.Client, server: LiveServer) -> None:
    own = {"labels": LABELS, "prompt_template": TEMPLATE, "temperature": 3.0}
    with described(server, "calibrated", **own):
        body = {"model": "calibrated", "input": TEXTS[0], "return_probabilities": True}
        (row,) = http.post("/v1/classify", json=body).json()["data"]
        (others,) = classify(http, model="calibrated", input=TEXTS[0], labels=LABELS[::-1])["data"]
    logprobs = scored(http, "news", TEXTS[0], LABELS)
    calibrated = normalised(logprobs, temperature=3.0)
    assert [*row["probabilities"].values()] == pytest.approx(calibrated, rel=0.02)
    # The calibration is of the adapter's own labels, in any order.
    turned = [others["probabilities"][label] for label in LABELS]
    assert turned == pytest.approx([*row["probabilities"].values()], rel=1e-3)
    assert row["label"] == others["label"]


def test_predicted_labels_are_counted(http: httpx.Client, server: LiveServer) -> None:
    with described(server, "counted", labels=LABELS, prompt_template=TEMPLATE):
        body = {"model": "counted", "input": TEXTS * 5}
        rows = http.post("/v1/classify", json=body).json()["data"]
        metrics = http.get("/metrics").text
    for label in {row["label"] for row in rows}:
        number = sum(row["label"] == label for row in rows)
        series = f'finlora_predicted_labels_total{{adapter="counted",label="{label}"}} {number}.0'
        assert series in metrics


def test_a_long_list_runs_in_turns(http: httpx.Client, server: LiveServer) -> None:
    limit = server.state.settings.max_num_waiting + server.state.settings.max_num_seqs
    texts = [f"Shares fell {i}" for i in range(limit + 20)]  # more than the engine would queue
    rows = classify(http, input=texts, return_probabilities=False)["data"]
    assert len(rows) == len(texts)
    alone = classify(http, input=texts[-1], return_probabilities=False)["data"][0]
    assert rows[-1]["label"] == alone["label"]
    assert rows[-1]["probability"] == pytest.approx(alone["probability"], rel=0.02)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": [1]}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": ["a"] * 1025}, 400, "input"),
        ({"input": "a" * 20_000}, 400, "input"),
        ({"input": "Zürich " * 200}, 400, "input"),
        ({"labels": ["one"]}, 400, "labels"),
        ({"labels": ["a", "a"]}, 400, "labels"),
        ({"labels": ["a", ""]}, 400, "labels"),
        ({"labels": None, "model": "tiny-llama"}, 400, "labels"),
        ({"template": None, "model": "tiny-llama"}, 400, "template"),
        ({"template": "no place"}, 400, "template"),
        ({"template": "{input} and {input}"}, 400, "template"),
        ({"temperature": 1}, 400, "temperature"),
        ({"model": "nobody"}, 404, "model"),
    ],
)
def test_what_cannot_be_classified_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], status: int, param: str
) -> None:
    response = http.post("/v1/classify", json=BODY | fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
