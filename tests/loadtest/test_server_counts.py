from prometheus_client import CollectorRegistry

from finlora.metrics import Metrics
from loadtest.server_counts import growth, scrape
from tests.metrics.gauges import event

METRICS = """# TYPE finlora_prompt_tokens counter
finlora_prompt_tokens_total{adapter="news"} 100.0
finlora_prompt_tokens_total{adapter="_base"} 20.0
# TYPE finlora_adapter_loads counter
finlora_adapter_loads_total{adapter="news",tier="ram"} 3.0
finlora_adapter_loads_total{adapter="news",tier="slot"} 4.0
# TYPE finlora_limit gauge
finlora_limit{setting="max_loras"} 16.0
"""


def test_totals_add_up_what_carries_the_labels() -> None:
    read = scrape(METRICS)
    assert read.total("finlora_prompt_tokens_total") == 120
    assert read.total("finlora_adapter_loads_total", tier="slot") == 4
    assert read.total("finlora_adapter_loads_total") == 7
    assert read.total("no_such_series") == 0
    assert (read.limit("max_loras"), read.limit("max_num_seqs")) == (16, None)


def test_a_server_says_what_it_is() -> None:
    info = 'finlora_model_info{name="tiny",quantization="nf4"} 1.0\n'
    facts = scrape(METRICS + "# TYPE finlora_model_info gauge\n" + info).facts()
    assert facts == {
        "model": {"name": "tiny", "quantization": "nf4"},
        "limits": {"max_loras": "16"},
    }


def test_the_hit_rate_is_of_what_came_between_two_scrapes() -> None:
    metrics = Metrics(CollectorRegistry(), max_adapters=10, registered=None)
    metrics.request_finished(event(num_prompt_tokens=10, num_cached_tokens=0))
    before = scrape(metrics.exposition()[0].decode())
    metrics.request_finished(event(num_prompt_tokens=30, num_cached_tokens=24))
    metrics.request_finished(event(num_prompt_tokens=10, num_cached_tokens=6, adapter=None))
    grown = growth(before, scrape(metrics.exposition()[0].decode()))
    assert (grown.prompt_tokens, grown.cached_tokens) == (40, 30)
    assert grown.hit_rate == 0.75
    assert grown.output_tokens == 2 * event().num_output_tokens


def test_a_server_that_did_nothing_has_no_hit_rate() -> None:
    assert growth(scrape(METRICS), scrape(METRICS)).hit_rate is None
