"""What the metrics cost: their share of the engine's time, and a scrape with 1,000 adapters."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from prometheus_client import CollectorRegistry

from finlora.adapters.shipped import open_registry
from finlora.config import load_settings
from finlora.engine.factory import build_engine
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.stats import EngineStats
from finlora.metrics import FinishedRequest, Metrics
from loadtest.peers.prompts import fresh_prompts, read_contexts

DATA = Path("examples/news_headlines.jsonl")
NUM_REQUESTS = 256
NUM_ADAPTERS = 1000
NUM_SCRAPES = 11


class TimedMetrics(Metrics):
    """Adds up the time spent in the calls of the engine's thread."""

    seconds = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def request_finished(self, event: FinishedRequest) -> None:
        """Timed."""
        with self._timed():
            super().request_finished(event)

    def step(
        self,
        *,
        num_tokens: int,
        num_seqs: int,
        num_adapters: int,
        seconds: float,
        rows: Mapping[str | None, int],
    ) -> None:
        """Timed."""
        with self._timed():
            super().step(
                num_tokens=num_tokens,
                num_seqs=num_seqs,
                num_adapters=num_adapters,
                seconds=seconds,
                rows=rows,
            )

    def token_emitted(self, seconds: float) -> None:
        """Timed."""
        with self._timed():
            super().token_emitted(seconds)


def share_of_steps() -> float:
    """Metric calls beside the steps of a mixed batch, as a share of all time."""
    settings = load_settings()
    registry = open_registry(settings)
    metrics = TimedMetrics(CollectorRegistry(), registered=registry)
    engine = build_engine(settings, registry, metrics, report=lambda _: None)
    names = [*registry.current(), None]
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    for index, prompt in enumerate(fresh_prompts(read_contexts(DATA), NUM_REQUESTS)):
        ids = engine.tokenizer.encode(prompt).ids
        adapter = names[index % len(names)]
        engine.add_request(engine.make_request(str(index), ids, params, adapter=adapter))
    started = time.perf_counter()
    _run(engine)
    total = time.perf_counter() - started
    engine.close()
    return metrics.seconds / total


def _run(engine: LLMEngine) -> None:
    while engine.has_requests:
        engine.step()
        if engine.last_step_was_idle:  # an adapter is on its way
            time.sleep(0.001)


def scrape() -> tuple[int, float]:
    """Bytes and median CPU seconds of a scrape when all of 1,000 adapters have been used."""
    names = [f"desk-{index:04}-news-sentiment" for index in range(NUM_ADAPTERS)]
    metrics = Metrics(CollectorRegistry())
    metrics.watch("base", _gauges(names))
    for name in names:
        for text in ("negative", "neutral", "positive", "?"):
            metrics.request_finished(_event(name, text))
        metrics.adapter_loaded(name, "ram", 0.01)
    times = []
    for _ in range(NUM_SCRAPES):
        started = time.thread_time()
        body, _ = metrics.exposition()
        times.append(time.thread_time() - started)
    return len(body), median(times)


def _gauges(names: list[str]) -> Callable[[], EngineStats]:
    return lambda: EngineStats(
        num_running=64,
        num_waiting=0,
        kv_cache_usage=0.5,
        base_bytes={"quantized": 1, "scales": 1, "embeddings": 1, "other": 1},
        adapter_bytes={"slot": 1, "ram": 1},
        kv_cache_bytes=1,
        num_kv_pages=1,
        prefix_cache_bytes=1,
        cuda_bytes={},
        resident_adapters={"slot": names[:16], "ram": names},
        max_loras=16,
        running_adapters=tuple(names[:16]),
        waiting_adapters=tuple(names[16:]),
    )


def _event(name: str, text: str) -> FinishedRequest:
    return FinishedRequest(
        request_id="r",
        adapter=name,
        digest="d",
        labels=("negative", "neutral", "positive"),
        reason="stop",
        error=None,
        error_text=None,
        text=text,
        num_prompt_tokens=60,
        num_output_tokens=3,
        num_cached_tokens=30,
        num_preemptions=0,
        arrival_time=0.0,
        start_time=0.01,
        first_token_time=0.05,
        last_token_time=0.1,
        end_time=0.1,
    )


def main(argv: list[str] | None = None) -> int:
    """Print both."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    num_bytes, seconds = scrape()
    sys.stdout.write(f"scrape with {NUM_ADAPTERS} adapters: {num_bytes:,} bytes, ")
    sys.stdout.write(f"{1000 * seconds:.1f} ms of CPU\n")
    sys.stdout.write(f"metric calls: {100 * share_of_steps():.2f} % of the engine's time\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
