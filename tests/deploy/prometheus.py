"""A real Prometheus over a running server, with the rules that are shipped."""

import math
import re
import shutil
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
INTERVAL = "250ms"
TIMEOUT_SECONDS = 60

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus and promtool: make test-tools",
)
# A number to compare with, at the end of a query or of one side of its `and`.
THRESHOLD = re.compile(r"\s(?:[<>]=?|[!=]=)\s[\d.]+(?=\s*(?:$|and\b))")


def rules(file: str) -> list[dict[str, Any]]:
    """All rules of a shipped file."""
    groups = yaml.safe_load((FOLDER / "rules" / file).read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def without_thresholds(expr: str) -> str:
    """An alert's query as it is before it is compared with a number: it must always have a value.

    Alerts are written as `query > number`, several of them joined by `and on (...)`.
    """
    return THRESHOLD.sub("", expr)


@dataclass(frozen=True)
class Prometheus:
    """Answers queries."""

    http: httpx.Client

    def get(self, path: str, **params: str) -> Any:
        """The `data` of an answer of its API. Raises ValueError for a query it cannot read."""
        content = self.http.get(f"/api/v1/{path}", params=params).json()
        if content["status"] != "success":
            raise ValueError(f"{params}: {content['error']}")
        return content["data"]

    def values(self, expr: str) -> list[float]:
        """What a query gives now, without what is not a number."""
        found = [float(sample["value"][1]) for sample in self.get("query", query=expr)["result"]]
        return [value for value in found if not math.isnan(value)]


@contextmanager
def running(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with the shipped configuration, but one target and a short interval."""
    port = _free_port()
    command = [
        "prometheus",
        f"--config.file={_config(folder, target)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    # Leaving the block closes the pipe and waits for the process.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            drain = _wait_until_ready(process)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as http:
                yield Prometheus(http)
        finally:
            process.terminate()
        drain.join(TIMEOUT_SECONDS)


def _config(folder: Path, target: str) -> Path:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = [str(FOLDER / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(process: "subprocess.Popen[str]") -> threading.Thread:
    """Returns the thread that reads on: a full pipe would stop Prometheus."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if "ready to receive web requests" in line:
            break
    else:
        raise AssertionError("Prometheus did not start:\n" + "".join(lines))
    drain = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)
    drain.start()
    return drain
