"""What commands say of a `--url` that is none, before anything else is done."""

import json
from pathlib import Path

import pytest

from finlora.batch.cli import main as batch
from finlora.errors import ConfigError
from finlora.evaluation.cli import main as evaluate
from finlora.predict.cli import main as predict
from finlora.server_url import server_url

WRONG = ["127.0.0.1:8000", "server", "", "ftp://server", "http://", "http://[::1", "http://a:b"]


@pytest.mark.parametrize("url", WRONG)
def test_every_command_says_how_to_write_it(url: str, tmp_path: Path) -> None:
    texts = tmp_path / "news.csv"
    texts.write_text("text,label\nProfit rose,up\nProfit fell,down\n", "utf-8")
    requests = tmp_path / "in.jsonl"
    body = {"model": "news", "prompt": "a"}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
    requests.write_text(json.dumps(line), "utf-8")
    columns = ["--text-column", "text", "--label-column", "label", "--template", "{input}"]
    for command, arguments in (
        (predict, [str(texts), "--adapter", "news"]),
        (batch, [str(requests), "-o", str(tmp_path / "out.jsonl")]),
        (evaluate, ["--data", str(texts), *columns]),
    ):
        with pytest.raises(ConfigError, match=r"write http://127\.0\.0\.1:8000"):
            command([*arguments, "--url", url])


@pytest.mark.parametrize("given", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_v1_may_be_there(given: str) -> None:
    assert server_url(given) == "http://a:1"
