"""Requests as HTTP sees them: by route and status, and those that were refused."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from finlora.metrics import buckets


class HTTPSeries:
    """Counts by the server's own routes and error codes; what a client writes is never a label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "finlora_http_requests",
            "Requests answered, by route and status",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "finlora_http_request_seconds",
            "First byte of a request to last byte of its answer",
            ["route"],
            buckets=buckets.REQUEST,
            registry=registry,
        )
        self._rejected = Counter(
            "finlora_requests_rejected",
            "Requests refused, by error code",
            ["code"],
            registry=registry,
        )

    def begin(self, codes: Iterable[str]) -> None:
        """Start at 0: a rate sees only growth from a value that was scraped before."""
        for code in codes:
            self._rejected.labels(code)

    def rejected(self, code: str) -> None:
        """A request was refused with one of the API's error codes."""
        self._rejected.labels(code).inc()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request of a route is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
