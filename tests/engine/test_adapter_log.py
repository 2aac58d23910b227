"""What the adapter cache does is logged, and still counted."""

import logging

import pytest
from prometheus_client import CollectorRegistry

from finlora.engine.adapter_log import LoggedAdapters
from finlora.metrics import OTHER_LABEL, Metrics
from tests.metrics.gauges import value


def test_loads_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(CollectorRegistry())
    observer = LoggedAdapters(metrics)
    with caplog.at_level(logging.DEBUG, "finlora"):
        observer.adapter_loaded("news", "ram", 0.1)
        observer.adapter_loaded("news", "slot", 0.001)
        observer.adapter_evicted("news", "slot")
        observer.adapter_load_failed("news")
    assert [(r.getMessage(), r.levelname) for r in caplog.records] == [
        ("adapter loaded", "INFO"),
        ("adapter loaded", "DEBUG"),
        ("adapter evicted", "DEBUG"),
        ("adapter load failed", "WARNING"),
    ]
    assert value(metrics, "finlora_adapter_loads_total", adapter="news", tier="ram") == 1
    assert value(metrics, "finlora_adapter_evictions_total", adapter="news", tier="slot") == 1
    assert value(metrics, "finlora_adapter_load_failures_total", adapter=OTHER_LABEL) == 1
