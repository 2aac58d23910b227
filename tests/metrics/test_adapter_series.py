"""Counters by adapter: bounded, gone with their adapter, and never made by a stranger."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from finlora.metrics import BASE_LABEL, OTHER_LABEL, Metrics
from finlora.metrics.adapter_series import MAX_LABELS
from tests.metrics.gauges import Gauges, event, samples, value

LABELS = ("negative", "neutral", "positive")
ALWAYS = {BASE_LABEL, OTHER_LABEL}


@dataclass
class Registered:
    """A registry whose names the test changes."""

    registered: set[str] = field(default_factory=set)
    changes: int = 0

    def generation(self) -> int:
        return self.changes

    def is_registered(self, name: str) -> bool:
        return name in self.registered

    def names(self) -> list[str]:
        return sorted(self.registered)

    def set(self, *names: str) -> None:
        self.registered = set(names)
        self.changes += 1


def make(max_adapters: int = 100, registered: Registered | None = None) -> Metrics:
    return Metrics(CollectorRegistry(), max_adapters=max_adapters, registered=registered)


def finish(metrics: Metrics, adapter: str | None, **changes: object) -> None:
    metrics.request_finished(event(adapter=adapter, **changes))


def adapters_in(metrics: Metrics) -> set[str]:
    return {labels["adapter"] for _, labels, _ in samples(metrics) if "adapter" in labels}


def test_a_finished_request_is_counted_under_its_adapter() -> None:
    metrics = make()
    finish(metrics, "news")
    finish(metrics, None, reason="length", num_cached_tokens=0)
    assert value(metrics, "finlora_requests_total", adapter="news", reason="stop") == 1
    assert value(metrics, "finlora_requests_total", adapter=BASE_LABEL, reason="length") == 1
    assert value(metrics, "finlora_prompt_tokens_total", adapter="news") == 10
    assert value(metrics, "finlora_prompt_tokens_cached_total", adapter="news") == 6
    assert value(metrics, "finlora_output_tokens_total", adapter="news") == 4
    assert value(metrics, "finlora_prefix_cache_hits_total", adapter="news") == 1
    assert value(metrics, "finlora_prefix_cache_hits_total", adapter=BASE_LABEL) == 0


def test_step_time_is_shared_out_by_rows() -> None:
    metrics = make()
    rows = {"news": 6, None: 2}
    metrics.step(num_tokens=8, num_seqs=2, num_adapters=1, seconds=0.4, rows=rows)
    assert value(metrics, "finlora_adapter_seconds_total", adapter="news") == pytest.approx(0.3)
    assert value(metrics, "finlora_adapter_seconds_total", adapter=BASE_LABEL) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" neutral\n", "neutral"),
        ("posit", OTHER_LABEL),
        ("", OTHER_LABEL),
    ],
)
def test_an_answer_that_is_a_label_is_counted_as_it(text: str, label: str) -> None:
    metrics = make()
    finish(metrics, "news", labels=LABELS, text=text)
    counted = [(own["label"], v) for n, own, v in samples(metrics) if "predicted_labels_t" in n]
    assert counted == [(label, 1)]


@pytest.mark.parametrize("changes", [{"reason": "abort"}, {"reason": "error"}, {"labels": ()}])
def test_what_is_no_answer_is_not_counted_as_one(changes: dict[str, object]) -> None:
    metrics = make()
    finish(metrics, "news", **{"labels": LABELS, "text": "positive", **changes})
    assert "label=" not in metrics.exposition()[0].decode()


def test_labels_are_bounded_too() -> None:
    metrics = make(max_adapters=1)
    many = [f"l{i}" for i in range(100)]
    for adapter in ("news", "tweets"):
        for label in many:
            finish(metrics, adapter, labels=many, text=label)
    seen = {(own["adapter"], own["label"]) for _, own, _ in samples(metrics) if "label" in own}
    assert len(seen) == MAX_LABELS + 2
    assert (OTHER_LABEL, OTHER_LABEL) in seen


def test_adapters_beyond_the_bound_share_one_label() -> None:
    metrics = make(max_adapters=2)
    for name in ("a", "b", "c", "d", "a", "_other"):
        finish(metrics, name)
    assert adapters_in(metrics) == {*ALWAYS, "a", "b"}
    assert value(metrics, "finlora_requests_total", adapter=OTHER_LABEL, reason="stop") == 3


OBSERVATIONS: list[Callable[[Metrics, str], None]] = [
    finish,
    lambda metrics, name: metrics.adapter_loaded(name, "ram", 0.1),
    lambda metrics, name: metrics.adapter_evicted(name, "slot"),
    lambda metrics, name: metrics.adapter_load_failed(name),
    lambda metrics, name: metrics.non_finite(name),
]


@pytest.mark.parametrize("observe", OBSERVATIONS)
def test_a_name_that_is_not_registered_never_makes_a_series(
    observe: Callable[[Metrics, str], None],
) -> None:
    metrics = make(registered=Registered({"news"}))
    metrics.watch("base", lambda: Gauges(resident_adapters={"ram": ["stranger"]}))
    observe(metrics, "stranger")
    observe(metrics, "news")
    assert adapters_in(metrics) == {*ALWAYS, "news"}


@pytest.mark.parametrize("observe", OBSERVATIONS)
def test_series_of_a_removed_adapter_disappear_and_do_not_come_back(
    observe: Callable[[Metrics, str], None],
) -> None:
    registered = Registered({"news", "tweets"})
    metrics = make(max_adapters=2, registered=registered)
    assert adapters_in(metrics) == {*ALWAYS, "news", "tweets"}
    for name in ("news", "tweets"):
        observe(metrics, name)
    registered.set("tweets", "new")
    assert adapters_in(metrics) == {*ALWAYS, "tweets", "new"}  # in the room of the removed one
    observe(metrics, "news")  # it was running when it was removed
    assert adapters_in(metrics) == {*ALWAYS, "tweets", "new"}


def test_totals_of_the_server_do_not_fall_when_an_adapter_is_removed() -> None:
    registered = Registered({"news", "tweets"})
    metrics = make(registered=registered)
    metrics.watch("base", Gauges)
    for name in ("news", "tweets", None):
        finish(metrics, name, reason="length")
    before = totals(metrics)
    assert before["vllm:prompt_tokens_total", ""] == 30
    assert before["vllm:request_success_total", "length"] == 3
    registered.set("tweets")
    assert totals(metrics) == before
    assert "news" not in adapters_in(metrics)


def totals(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (name, labels.get("finished_reason", "")): count
        for name, labels, count in samples(metrics)
        if name.startswith("vllm:") and name.endswith("_total")
    }


FAULTS = ("finlora_adapter_load_failures_total", "finlora_non_finite_rows_total")


def fail(metrics: Metrics, name: str) -> None:
    metrics.adapter_load_failed(name)
    metrics.non_finite(name)


def faults(metrics: Metrics) -> list[dict[str, float]]:
    """Those that are not 0, of each kind, by adapter."""
    return [
        {own["adapter"]: v for n, own, v in samples(metrics) if n == name and v} for name in FAULTS
    ]


def test_what_is_registered_is_scraped_at_zero_before_anything_happens_to_it() -> None:
    registered = Registered({"news"})
    metrics = make(registered=registered)
    for names in (["news"], ["news", "tweets"]):
        registered.set(*names)
        for name in names:
            for series in FAULTS:
                assert value(metrics, series, adapter=name) == 0
            assert value(metrics, "finlora_requests_total", adapter=name, reason="error") == 0
    fail(metrics, "tweets")
    assert faults(metrics) == [{"tweets": 1}, {"tweets": 1}]


def test_a_fault_of_a_name_that_no_scrape_has_shown_is_seen_to_rise_under_the_others() -> None:
    registered = Registered()
    metrics = make(registered=registered)
    assert faults(metrics) == [{}, {}]
    registered.set("news")
    metrics.adapter_loaded("news", "ram", 0.1)  # makes its series
    fail(metrics, "news")  # no scrape has come between
    assert faults(metrics) == [{OTHER_LABEL: 1}, {OTHER_LABEL: 1}]
    fail(metrics, "news")
    assert faults(metrics) == [{OTHER_LABEL: 1, "news": 1}] * 2
    registered.set()
    assert faults(metrics) == [{OTHER_LABEL: 1}] * 2
    registered.set("news")
    fail(metrics, "news")
    assert faults(metrics) == [{OTHER_LABEL: 2}] * 2


def test_of_too_many_names_those_that_are_used_become_labels() -> None:
    metrics = make(max_adapters=2, registered=Registered({"a", "b", "c"}))
    assert adapters_in(metrics) == ALWAYS
    for name in ("c", "b", "a"):
        finish(metrics, name)
    assert adapters_in(metrics) == {*ALWAYS, "b", "c"}


def test_the_names_are_listed_when_the_registry_has_changed_only() -> None:
    registered = Registered({"news"})
    metrics = make(registered=registered)
    metrics.exposition()
    registered.registered = {"tweets"}  # but its generation is the same
    assert adapters_in(metrics) == {*ALWAYS, "news"}


def test_series_start_at_zero_so_that_the_first_event_is_an_increase() -> None:
    metrics = make()
    metrics.adapter_loaded("news", "ram", 0.1)
    assert value(metrics, "finlora_requests_total", adapter="news", reason="error") == 0
    assert value(metrics, "finlora_adapter_load_failures_total", adapter="news") == 0


def test_a_scrape_with_a_thousand_adapters_stays_below_a_megabyte() -> None:
    names = [f"adapter-with-a-rather-long-name-{i:04}" for i in range(1000)]
    metrics = make(registered=Registered(set(names)))
    everywhere = {"slot": names[:16], "ram": names}
    metrics.watch("base", lambda: Gauges(resident_adapters=everywhere, running_adapters=(*names,)))
    for name in names:
        for text in (*LABELS, "something else"):
            finish(metrics, name, labels=LABELS, text=text)
        for tier in ("ram", "slot"):
            metrics.adapter_loaded(name, tier, 0.01)
            metrics.adapter_evicted(name, tier)
    assert len(metrics.exposition()[0]) < 1_000_000
