"""The spans of requests, read from OpenTelemetry's own exporter."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, format_span_id, format_trace_id

from finlora.api.trace_setup import VARIABLES, make_tracer
from finlora.api.tracing import RequestTracer
from finlora.config import Settings
from tests.api.live import serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Traced:
    """A server's address, and the spans once it has stopped."""

    settings: Settings
    exporter: InMemorySpanExporter

    def spans_of(self, **fields: object) -> dict[str, ReadableSpan]:
        """What one request leaves, by name. The server has ended, so nothing is still to come."""
        body = {"model": "news", "prompt": "a b c", "max_tokens": 4, "ignore_eos": True}
        tracer = RequestTracer(self._provider())
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        with serving(self.settings, tracer) as server:
            httpx.get(f"{server.url}/ready")
            url = f"{server.url}/v1/completions"
            httpx.post(url, json=body | fields, headers=headers, timeout=60)
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def _provider(self) -> TracerProvider:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        return provider


@pytest.fixture
def traced(settings: Settings) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    yield Traced(settings, exporter)
    exporter.shutdown()


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return format_span_id(span.parent.span_id)


def id_of(span: ReadableSpan) -> str:
    return format_span_id(context_of(span).span_id)


def test_a_stream_is_http_then_queue_prefill_decode(traced: Traced) -> None:
    spans = traced.spans_of(stream=True)
    root, sequence = spans["POST /v1/completions"], spans["text_completion news"]
    stages = [spans[name] for name in ("queue", "prefill", "decode")]
    assert len(spans) == 6  # and the stream; the probe leaves none
    assert root.kind is SpanKind.SERVER
    assert parent_of(root) == PARENT
    assert {format_trace_id(context_of(s).trace_id) for s in spans.values()} == {TRACE}
    assert parent_of(sequence) == parent_of(spans["stream"]) == id_of(root)
    assert {parent_of(stage) for stage in stages} == {id_of(sequence)}
    edges = [edge for stage in stages for edge in times(stage)]
    assert edges == sorted(edges)
    for span in spans.values():
        assert times(root)[0] <= times(span)[0] <= times(span)[1] <= times(root)[1]


def test_attributes_follow_the_conventions_and_hold_no_text(traced: Traced) -> None:
    spans = traced.spans_of(prompt="nobody may read this")
    http = spans["POST /v1/completions"].attributes
    genai = spans["text_completion news"].attributes
    assert http is not None
    assert genai is not None
    assert http["http.request.method"] == "POST"
    assert http["http.route"] == http["url.path"] == "/v1/completions"
    assert http["http.response.status_code"] == 200
    assert genai["gen_ai.request.model"] == "news"
    assert genai["gen_ai.usage.output_tokens"] == 4
    assert genai["gen_ai.response.finish_reasons"] == ("length",)
    assert "stream" not in spans
    assert "nobody" not in "".join(span.to_json() for span in spans.values())


def test_a_refused_request_has_no_sequence_and_is_no_error_of_ours(traced: Traced) -> None:
    spans = traced.spans_of(model="nobody")
    assert [*spans] == ["POST /v1/completions"]
    assert spans["POST /v1/completions"].status.status_code is StatusCode.UNSET


def test_without_an_address_nothing_is_traced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert make_tracer(settings) is None


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_address_turns_traces_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    if by_variable:
        monkeypatch.setenv(VARIABLES[1], "http://127.0.0.1:9")
        chosen = settings
    else:
        chosen = settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9/"})
    tracer = make_tracer(chosen)
    assert tracer is not None
    tracer.close()
