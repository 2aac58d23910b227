"""Real locust, in a process of its own, against a real server of a tiny model."""

import csv
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from loadtest.picture import draw
from tests.api.live import LiveServer

ROOT = Path(__file__).parents[2]


def locust(host: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A short run without a user interface."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["--host", host, "--users", "3", "--only-summary", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'server'}:{ROOT}"} | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def counts(file: Path) -> dict[tuple[str, str], int]:
    """What locust's own statistics counted, by type and name."""
    return {
        (row["method"], row["name"]): row["num_requests"] for row in json.loads(file.read_text())
    }


def test_a_run_measures_tokens_as_they_come_and_writes_what_it_saw(
    tiny_server: LiveServer, tmp_path: Path
) -> None:
    done = locust(
        tiny_server.url,
        *("--run-time", "60s", "--max-requests", "12", "--max-tokens", "4", "StreamingUser"),
        *("--json-file", str(tmp_path / "locust"), "--html", str(tmp_path / "report.html")),
        *("--output", str(tmp_path), "--broken-adapters", "broken"),
        LOADTEST_MIN_RPS="0.01",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all limits held" in done.stdout
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    rows = {(row["kind"], row["name"]): row for row in summary["rows"]}
    streamed, first, further = (
        rows[kind, "completions, streamed"] for kind in ("request", "first token", "next token")
    )
    assert streamed["errors"] == 0
    assert first["count"] == streamed["count"] > 0
    assert 0 < first["p50_ms"] <= streamed["p50_ms"]
    assert further["count"] <= 3 * streamed["count"]  # of four tokens
    # Our listener and locust's statistics heard of the same events.
    heard = {key: row["count"] for key, row in rows.items()}
    assert counts(tmp_path / "locust.json") == heard
    table = csv.DictReader((tmp_path / "figures.csv").read_text().splitlines())
    assert {(row["kind"], row["name"]): int(row["count"]) for row in table} == heard
    assert 0 < summary["client"]["machine_share"] < 1
    assert summary["server"]["output_tokens"] >= 4 * streamed["count"]
    samples = (tmp_path / "samples.csv").read_text().splitlines()[1:]
    assert len(samples) == sum(heard.values())
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<(script|img|iframe)[^>]* src=.https?:", page)


def test_limits_set_the_exit_code_and_right_refusals_are_no_errors(tiny_server: LiveServer) -> None:
    done = locust(
        tiny_server.url,
        *("--run-time", "20s", "--max-requests", "14", "--max-request-p95-ms", "0.001"),
        *("--mix", "bad-adapters", "--broken-adapters", "broken", "PlainUser"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (miss,) = [line for line in done.stdout.splitlines() if line.startswith("LIMIT MISSED")]
    assert "p95 of whole requests" in miss
    assert "0.00% failed" in done.stdout
    for kind in ("unknown adapter", "malformed name", "broken adapter"):
        assert re.search(rf"refusal +{kind} +[1-9][0-9]* +0 ", done.stdout)


class MortalServer(BaseHTTPRequestHandler):
    """Has a model and metrics until it is asked for an answer; from then on it is gone."""

    def do_GET(self) -> None:
        models = {"data": [{"id": "base"}]}
        self._answer(json.dumps(models).encode() if self.path == "/v1/models" else b"")

    def do_POST(self) -> None:
        if int(self.headers["Content-Length"]) == 2:  # only whether there is such a route
            self._answer(b"{}")
            return
        self.server.server_close()
        self.close_connection = True

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_a_server_that_dies_leaves_a_report(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), MortalServer) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        host = f"http://127.0.0.1:{server.server_port}"
        sizes = "--run-time", "20s", "--max-requests", "6", "--output", str(tmp_path)
        done = locust(host, *sizes, "PlainUser")
        server.shutdown()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "THE SERVER WAS GONE at the end" in done.stdout
    assert "LIMIT MISSED: 100.00%" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(summary["errors"].values()) == summary["totals"]["errors"] >= 6
    assert draw(tmp_path).exists()  # though there is no good answer


def test_another_machine_is_not_loaded_by_mistake() -> None:
    done = locust("http://192.0.2.1:8000")
    assert done.returncode == 2
    assert "192.0.2.1 is not this machine" in done.stderr


class NoRoutes(BaseHTTPRequestHandler):
    """A server that knows no path at all."""

    def do_POST(self) -> None:
        body = b'{"error": {"code": "not_found"}}'
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_users_without_a_route_are_left_out() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), NoRoutes) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        done = locust(f"http://127.0.0.1:{server.server_port}", "ChatUser", "ClassifyUser")
        server.shutdown()
    assert done.returncode == 2
    assert "left out ChatUser: the server has no /v1/chat/completions" in done.stdout
    assert "left out ClassifyUser: the server has no /v1/classify" in done.stdout
    assert "no route for any of the chosen users" in done.stderr
