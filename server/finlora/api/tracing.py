"""Requests as OpenTelemetry spans: HTTP -> sequence -> queue, prefill, decode; and the stream.

Spans are made when the request is over, from the times that the engine noted, so that tracing costs
its steps nothing. Names and attributes: OpenTelemetry's conventions for HTTP and generative AI.
Needs the extra `otel`.
"""

import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import finlora
from finlora.api.request_record import INTERNAL_ERROR, RequestRecord
from finlora.metrics import BASE_LABEL, FinishedRequest

NANO = 1_000_000_000
Attributes = dict[str, AttributeValue]


def otlp_provider(endpoint: str | None) -> TracerProvider:
    """Sends spans in batches, on a thread of its own; None: where OpenTelemetry's variables say."""
    # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over these.
    own = {"service.name": "finlora", "service.version": finlora.__version__}
    provider = TracerProvider(resource=Resource(own).merge(Resource.create()))
    url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


class RequestTracer:
    """Turns records into spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("finlora", finlora.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def export(self, record: RequestRecord) -> None:
        """Send the request's spans, children of the client's `traceparent` where there is one."""
        clock = _Clock()
        end = record.end_time or time.monotonic()
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=self._propagator.extract(record.headers),
            kind=SpanKind.SERVER,
            attributes=_http_attributes(record),
            start_time=clock.at(record.arrival_time),
        )
        record.trace_id = format_trace_id(span.get_span_context().trace_id)
        if record.outcome == "error":
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for sequence in record.sequences:
            self._sequence(record, sequence, inside, clock)
        if record.is_stream:
            self._stage("stream", inside, clock, record.first_byte_time, end)
        span.end(clock.at(end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _sequence(
        self, record: RequestRecord, sequence: FinishedRequest, parent: Context, clock: "_Clock"
    ) -> None:
        attributes = _genai_attributes(record, sequence)
        span = self._tracer.start_span(
            f"{_operation(record)} {_model(sequence)}",
            context=parent,
            attributes=attributes,
            start_time=clock.at(sequence.arrival_time),
        )
        if sequence.error is not None:
            span.set_status(Status(StatusCode.ERROR, sequence.error_text))
        inside, end = set_span_in_context(span), sequence.end_time
        start, first = sequence.start_time, sequence.first_token_time
        self._stage("queue", inside, clock, sequence.arrival_time, start or end)
        self._stage("prefill", inside, clock, start, first or end)
        self._stage("decode", inside, clock, first, end)
        span.end(clock.at(end))

    def _stage(
        self, name: str, parent: Context, clock: "_Clock", start: float | None, end: float
    ) -> None:
        if start is not None:
            span = self._tracer.start_span(name, context=parent, start_time=clock.at(start))
            span.end(clock.at(end))


class _Clock:
    """Wall-clock nanoseconds of monotonic seconds, by one reading of both."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def at(self, seconds: float) -> int:
        return self._offset + int(seconds * NANO)


def _http_attributes(record: RequestRecord) -> Attributes:
    attributes: Attributes = {
        "http.request.method": record.method,
        "http.route": record.route,
        "url.path": record.path,
        "finlora.outcome": record.outcome,
    }
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.request_id is not None:
        attributes["finlora.request.id"] = record.request_id
    if record.status is not None and record.status >= INTERNAL_ERROR:
        attributes["error.type"] = record.error_code or str(record.status)
    return attributes


def _operation(record: RequestRecord) -> str:
    return "chat" if "chat" in record.route else "text_completion"


def _model(sequence: FinishedRequest) -> str:
    return sequence.adapter or BASE_LABEL


def _genai_attributes(record: RequestRecord, sequence: FinishedRequest) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": _operation(record),
        "gen_ai.provider.name": "finlora",
        "gen_ai.request.model": _model(sequence),
        "gen_ai.response.id": sequence.request_id,
        "gen_ai.response.finish_reasons": [sequence.reason],
        "gen_ai.usage.input_tokens": sequence.num_prompt_tokens,
        "gen_ai.usage.output_tokens": sequence.num_output_tokens,
        "finlora.usage.cached_tokens": sequence.num_cached_tokens,
        "finlora.preemptions": sequence.num_preemptions,
    }
    if sequence.digest is not None:
        attributes["finlora.adapter.digest"] = sequence.digest
    if sequence.error is not None:
        attributes["error.type"] = sequence.error
    return attributes
