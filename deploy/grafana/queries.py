"""The shapes of our queries."""

from deploy.grafana.panels import Query

# Chosen at the top of every dashboard.
HERE = 'instance=~"$instance"'
WINDOW = "$__rate_interval"
QUANTILES = (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))


def now(series: str, by: str, matchers: str = HERE) -> Query:
    """The value of a gauge, added up over servers."""
    return Query(f"sum by ({by}) ({series}{{{matchers}}})", f"{{{{{by}}}}}")


def rate(counter: str, by: str, matchers: str = HERE) -> Query:
    """Events a second, by a label."""
    return Query(f"sum by ({by}) (rate({counter}{{{matchers}}}[{WINDOW}]))", f"{{{{{by}}}}}")


def total_rate(counter: str, legend: str, matchers: str = HERE) -> Query:
    """Events a second, all together."""
    return Query(f"sum(rate({counter}{{{matchers}}}[{WINDOW}]))", legend)


def quantiles(histogram: str, matchers: str = HERE) -> list[Query]:
    """Median, 95th and 99th percentile."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{matchers}}}[{WINDOW}]))"
    return [Query(f"histogram_quantile({q}, {buckets})", name) for q, name in QUANTILES]


def p95_by(histogram: str, by: str, matchers: str = HERE) -> Query:
    """95th percentile for each value of a label."""
    buckets = f"sum by (le, {by}) (rate({histogram}_bucket{{{matchers}}}[{WINDOW}]))"
    return Query(f"histogram_quantile(0.95, {buckets})", f"{{{{{by}}}}}")


def ratio(part: str, whole: str, legend: str) -> Query:
    """The share of one counter's growth in another's, over all servers."""
    over = "sum(rate({series}{{{here}}}[{window}]))"
    parts = (over.format(series=s, here=HERE, window=WINDOW) for s in (part, whole))
    return Query(" / ".join(parts), legend)


def top(query: Query, count: int = 10) -> Query:
    """The largest only: a thousand lines show nothing."""
    return Query(f"topk({count}, {query.expr})", query.legend)
