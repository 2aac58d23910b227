"""A benchmark by guidellm ends well, and its counts are the server's own."""

import json
import shlex
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from finlora.config import Settings
from tests.api.clients.conftest import Run, example, ours
from tests.api.live import LiveServer

NUM_REQUESTS, NUM_TOKENS = 12, 6
COUNTERS = ("finlora_requests", "finlora_prompt_tokens", "finlora_output_tokens")


def counts(http: httpx.Client) -> list[float]:
    """Requests, prompt tokens and output tokens of the adapter so far."""
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    return [
        sum(s.value for s in families[name].samples if s.labels.get("adapter") == "news")
        for name in COUNTERS
    ]


def benchmark(run: Run, url: str, tokenizer: str, folder: Path) -> dict[str, Any]:
    """The report of the documented command over a few prompts."""
    rows = [
        {"prompt": f"Shares of company {i} fell {'again ' * i}", "output_tokens_count": NUM_TOKENS}
        for i in range(NUM_REQUESTS)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    others = {"TOKENIZER_FOLDER": tokenizer, "count=200": f"count={NUM_REQUESTS}"}
    command = ours(example("bash", "guidellm run"), url, **others)
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    run(program, *arguments, "--disable-console-interactive")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return report


def test_a_benchmark_counts_what_the_server_counts(
    server: LiveServer, http: httpx.Client, settings: Settings, run: Run, tmp_path: Path
) -> None:
    before = counts(http)
    (result,) = benchmark(run, server.url, settings.model, tmp_path)["benchmarks"]
    server.wait_until_idle()
    served = [now - then for now, then in zip(counts(http), before, strict=True)]

    metrics = result["metrics"]
    assert metrics["request_totals"] == {
        "successful": NUM_REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": NUM_REQUESTS,
    }
    tokens = (metrics[name]["successful"] for name in ("prompt_token_count", "output_token_count"))
    assert served == [NUM_REQUESTS, *(count["total_sum"] for count in tokens)]
    assert served[2] == NUM_REQUESTS * NUM_TOKENS
    assert metrics["time_to_first_token_ms"]["successful"]["count"] == NUM_REQUESTS
