"""Is it up, is it fast, does it keep up."""

from deploy.grafana.boards.shared import (
    DISCONNECTS,
    FIRST_TOKEN,
    INSTANCE,
    INTER_TOKEN,
    QUEUE_AND_BATCH,
    REFUSALS,
    REQUEST,
    TOKEN_RATES,
)
from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import HERE, quantiles, rate


def _stat(title: str, description: str, unit: str, expr: str) -> Panel:
    return Panel(title, description, unit, [Query(expr, title)], stat=True, width=4, height=4)


OVERVIEW = Dashboard(
    "overview",
    "finlora: overview",
    "Is it up, is it fast, does it keep up.",
    {
        "Now": [
            _stat("Ready", "Servers that take requests.", "none", f"sum(finlora_ready{{{HERE}}})"),
            _stat(
                "Sequences a second",
                "Ended in the last five minutes, however they ended.",
                "reqps",
                f"sum(instance:finlora_requests:rate5m{{{HERE}}})",
            ),
            _stat(
                "First token, p95",
                "The slowest server of those chosen, over five minutes.",
                "s",
                f"max(instance:finlora_time_to_first_token_seconds:p95_5m{{{HERE}}})",
            ),
            _stat(
                "Failed",
                "Sequences that ended with an error of the server, as a share; five minutes.",
                "percentunit",
                f"max(instance:finlora_request_errors:ratio5m{{{HERE}}})",
            ),
            _stat(
                "Queue in use",
                "Of the queue's limit, beyond which requests get a 503.",
                "percentunit",
                f"max(instance:finlora_requests_waiting:ratio{{{HERE}}})",
            ),
            _stat(
                "Memory in use",
                "Of what the process may use: the container's limit, or the machine's memory.",
                "percentunit",
                f"max(instance:finlora_memory:ratio{{{HERE}}})",
            ),
        ],
        "Latency": [
            FIRST_TOKEN,
            INTER_TOKEN,
            REQUEST,
        ],
        "Work": [
            Panel(
                "Sequences that ended",
                "By reason: a stop, the length asked for, the client left, an error.",
                "reqps",
                [rate("finlora_requests_total", "reason")],
                stacked=True,
            ),
            TOKEN_RATES,
            QUEUE_AND_BATCH,
            Panel(
                "HTTP requests",
                "By route of the server and status.",
                "reqps",
                [
                    Query(
                        "sum by (route, status) "
                        f"(rate(finlora_http_requests_total{{{HERE}}}[$__rate_interval]))",
                        "{{route}} {{status}}",
                    )
                ],
            ),
            REFUSALS,
            DISCONNECTS,
        ],
        "Engine": [
            Panel(
                "Step",
                "Time of one step of the engine: the least gap between two tokens.",
                "s",
                quantiles("finlora_step_seconds"),
            ),
            Panel(
                "Rows of a step",
                "Tokens that one step computes, of prompts and answers together.",
                "suffix: rows",
                quantiles("finlora_step_tokens"),
            ),
            Panel(
                "Adapters of a step",
                "Different adapters in one batch.",
                "suffix: adapters",
                quantiles("finlora_step_adapters"),
            ),
        ],
    },
    [INSTANCE],
)
