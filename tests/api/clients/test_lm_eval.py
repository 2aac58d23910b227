"""lm-eval, by echo and log-probabilities, finds the labels and accuracy of our own scoring."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from finlora.adapters.label_task import softmax
from finlora.config import Settings
from finlora.evaluation.answers import Mode
from finlora.evaluation.engine_answers import engine_answers
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.runner import evaluate
from finlora.evaluation.test_sets import load_test_set
from finlora.model import best_dtype
from tests.api.clients.conftest import FOLDER, Run, example, ours
from tests.api.live import LiveServer, serving
from tests.docs.blocks import ROOT

LABELS = ("negative", "neutral", "positive")
HEADLINES = "examples/news_headlines.jsonl"
SCRIPT = str(FOLDER / "lm_eval_scores.py")


def write_task(folder: Path, num_rows: int) -> None:
    """The documented task over the first rows of the example, and these without the last space."""
    lines = (ROOT / HEADLINES).read_text("utf-8").splitlines()[:num_rows]
    rows = [json.loads(line) for line in lines]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    stripped = [row | {"context": row["context"].rstrip()} for row in rows]
    (folder / "stripped.jsonl").write_text("\n".join(map(json.dumps, stripped)), "utf-8")
    task = example("yaml", "task: headlines").code
    assert HEADLINES in task
    (folder / "headlines.yaml").write_text(
        task.replace(HEADLINES, str(folder / "rows.jsonl")), "utf-8"
    )


def own_outcome(server: LiveServer, model: str, file: Path) -> Outcome:
    """By `finlora eval --mode score`, with an engine of its own."""
    test_set = load_test_set(str(file), labels=LABELS)
    with engine_answers(server.state.settings, server.state.registry, [model]) as answerer:
        (outcome,) = evaluate(answerer, [model], [test_set], Mode.SCORE)
    return outcome


def arguments(server: LiveServer, model: str, **others: Any) -> str:
    """For the program: how lm-eval reaches the server."""
    url, max_length = f"{server.url}/v1/completions", server.state.engine.max_model_len
    return json.dumps({"model": model, "base_url": url, "max_length": max_length, **others})


def check_agreement(found: dict[str, Any], outcome: Outcome) -> None:
    """The same probabilities, so the same label in every row that is no tie, and so on."""
    exact = best_dtype(torch.device("cpu")) is torch.float32
    tolerance = 1e-3 if exact else 0.05
    assert outcome.probabilities is not None
    num_ties = 0
    for scores, chances, label in zip(
        found["scores"], outcome.probabilities, outcome.predicted, strict=True
    ):
        assert softmax(scores) == pytest.approx(chances, abs=tolerance)
        second, first = sorted(chances)[-2:]
        if first - second > 2 * tolerance:
            assert LABELS[scores.index(max(scores))] == label
        else:
            num_ties += 1
    accuracy = sum(outcome.hits) / len(outcome.hits)
    assert found["accuracy"] == pytest.approx(accuracy, abs=(num_ties + 0.5) / len(outcome.hits))


def test_labels_and_accuracy_are_our_own(
    server: LiveServer, settings: Settings, run: Run, tmp_path: Path
) -> None:
    write_task(tmp_path, 30)
    tokenizer = {"tokenizer": settings.model, "num_concurrent": 4}
    runs = (
        arguments(server, "news"),
        arguments(server, "news", **tokenizer),
        arguments(server, "news", **tokenizer, tokenized_requests=False),
    )
    answers = json.loads(run("python", SCRIPT, "headlines", str(tmp_path), *runs))
    outcome = own_outcome(server, "news", tmp_path / "stripped.jsonl")
    assert len({*outcome.predicted}) > 1
    for found in answers:
        check_agreement(found, outcome)


@pytest.mark.slow
def test_the_documented_command(server: LiveServer, run: Run, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_task(tasks, 10)
    command = ours(example("bash", "lm_eval run"), server.url).replace("\\\n", " ")
    found = re.search(r"\|acc *\|↑ *\| *([\d.]+)\|", run(*shlex.split(command)))
    assert found is not None
    outcome = own_outcome(server, "news", tasks / "stripped.jsonl")
    assert float(found[1]) == pytest.approx(sum(outcome.hits) / len(outcome.hits), abs=0.11)


@pytest.mark.slow
def test_a_shipped_adapter_does_as_well(run: Run, tmp_path: Path) -> None:
    write_task(tmp_path, 60)
    settings = Settings(
        registry=ROOT / "adapters_registry", device="cpu", max_model_len=256, max_loras=2
    )
    with serving(settings) as server:
        runs = arguments(server, "news-sentiment", num_concurrent=4)
        (found,) = json.loads(run("python", SCRIPT, "headlines", str(tmp_path), runs))
        stripped, whole = (
            own_outcome(server, "news-sentiment", tmp_path / name)
            for name in ("stripped.jsonl", "rows.jsonl")
        )
    check_agreement(found, stripped)
    # Adapters that have seen both forms lose next to nothing by the space that lm-eval moves.
    assert found["accuracy"] == pytest.approx(sum(whole.hits) / len(whole.hits), abs=0.05)
