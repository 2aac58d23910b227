"""The shipped rules, read by promtool and run by a real Prometheus over a real server."""

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.grafana.dashboards import DASHBOARDS
from finlora.adapters.adapter import WEIGHTS_FILE
from tests.api.live import LiveServer, register
from tests.deploy.conftest import ADAPTERS
from tests.deploy.prometheus import (
    FOLDER,
    TIMEOUT_SECONDS,
    Prometheus,
    needs_prometheus,
    rules,
    running,
    without_thresholds,
)

ROOT = FOLDER.parents[1]
ALERTS, RECORDED = rules("alerts.yml"), rules("recording.yml")
PROMPTS = [f"Input: profit rose {i} percent." for i in range(8)]


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", *map(str, sorted(FOLDER.glob("rules/*.yml"))))


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", *map(str, sorted(FOLDER.glob("tests/*.yml"))))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_links_to_what_to_do(alert: dict[str, dict[str, str]]) -> None:
    page, anchor = alert["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (\w+)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    assert alert["labels"]["severity"] in ("critical", "warning")


def test_every_alert_has_a_case_of_its_own() -> None:
    cases = "".join(file.read_text("utf-8") for file in FOLDER.glob("tests/*.yml"))
    missing = [a["alert"] for a in ALERTS if f'alertname="{a["alert"]}"' not in cases]
    assert not missing


@pytest.mark.parametrize(
    ("expr", "without"),
    [
        ("a > 0.5", "a"),
        ('up{job="x"} == 0', 'up{job="x"}'),
        ("a > 0\nand on (job) rate(b[5m]) == 0", "a\nand on (job) rate(b[5m])"),
        ("sum (rate(a[5m])) / 2 >= 1", "sum (rate(a[5m])) / 2"),
    ],
)
def test_thresholds_are_cut_off(expr: str, without: str) -> None:
    assert without_thresholds(expr) == without


@contextmanager
def broken_adapter(server: LiveServer, name: str) -> Iterator[str]:
    """The name of an adapter whose weights have been cut."""
    registry = server.state.registry
    adapter = register(registry.folder, server.state.engine.spec, name, seed=9)
    weights = adapter.folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    try:
        yield name
    finally:
        registry.remove(name)


def complete(http: httpx.Client, adapter: str, prompt: str) -> int:
    body = {"model": adapter, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    return http.post("/v1/completions", json=body).status_code


def all_queries(instance: str) -> set[str]:
    """Of dashboards, recording rules and alerts; Grafana's variables filled in."""
    values = {"instance": instance, "adapter": "|".join(ADAPTERS), "__rate_interval": "30s"}
    panels = [p for dashboard in DASHBOARDS for p in dashboard.panels if not p.needs_cuda]
    shown = {query.expr for panel in panels for query in panel.queries}
    filled = {re.sub(r"\$(\w+)", lambda name: values[name[1]], expr) for expr in shown}
    recorded = {rule["expr"] for rule in RECORDED} | {rule["record"] for rule in RECORDED}
    return filled | recorded | {without_thresholds(alert["expr"]) for alert in ALERTS}


@needs_prometheus
def test_every_query_has_data_under_load(server: LiveServer, tmp_path: Path) -> None:
    instance = server.url.removeprefix("http://")
    deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
    pending = all_queries(instance)
    assert len(pending) > 100
    with (
        running(tmp_path, instance) as prometheus,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_SECONDS) as http,
        ThreadPoolExecutor(len(ADAPTERS)) as clients,
    ):
        while pending:
            assert time.monotonic() < deadline, f"no data: {sorted(pending)}"
            for prompt in PROMPTS:
                asked = [clients.submit(complete, http, name, prompt) for name in ADAPTERS]
                assert {answer.result() for answer in asked} == {200}
            pending = {expr for expr in pending if not prometheus.values(expr)}
        groups = prometheus.get("rules")["groups"]
        troubles = [rule for g in groups for rule in g["rules"] if rule["health"] == "err"]
        assert not troubles


@needs_prometheus
@pytest.mark.parametrize("is_known", [True, False], ids=["scraped before", "new"])
def test_the_first_failure_of_an_adapter_ever_raises_an_alert(
    server: LiveServer, tmp_path: Path, is_known: bool
) -> None:
    instance = server.url.removeprefix("http://")
    name = "known" if is_known else "new"
    shown = f'finlora_adapter_load_failures_total{{adapter="{name if is_known else "_other"}"}}'
    alert = 'ALERTS{alertname="FinloraAdapterLoadFailures",alertstate="firing"}'
    with (
        running(tmp_path, instance) as prometheus,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_SECONDS) as http,
        ExitStack() as adapters,
    ):
        if is_known:
            adapters.enter_context(broken_adapter(server, name))
        wait_for(prometheus, shown)
        if not is_known:
            adapters.enter_context(broken_adapter(server, name))
        assert not prometheus.values(alert)
        assert complete(http, name, PROMPTS[0]) == 500
        wait_for(prometheus, alert)


def wait_for(prometheus: Prometheus, expr: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not prometheus.values(expr):
        assert time.monotonic() < deadline, expr
