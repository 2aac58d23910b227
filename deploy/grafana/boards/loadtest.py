"""What the server sees of a load test."""

from deploy.grafana.boards.shared import (
    CPU,
    DISCONNECTS,
    FIRST_TOKEN,
    INSTANCE,
    INTER_TOKEN,
    QUEUE_AND_BATCH,
    REFUSALS,
    SEQUENCES,
    TOKEN_RATES,
)
from deploy.grafana.panels import Dashboard, Panel
from deploy.grafana.queries import p95_by, quantiles, rate

LOADTEST = Dashboard(
    "loadtest",
    "finlora: load test",
    "What the server sees while a load test runs: offered, served, refused, and where time goes.",
    {
        "Offered and served": [
            Panel(
                "HTTP requests",
                "By status, of all routes.",
                "reqps",
                [rate("finlora_http_requests_total", "status")],
                stacked=True,
            ),
            TOKEN_RATES,
            QUEUE_AND_BATCH,
        ],
        "Latency": [
            Panel(
                "HTTP, p95",
                "First byte of a request to last byte of its answer, by route.",
                "s",
                [p95_by("finlora_http_request_seconds", "route")],
            ),
            FIRST_TOKEN,
            INTER_TOKEN,
            Panel(
                "In the queue",
                "Arrival to first step, adapter load included.",
                "s",
                quantiles("finlora_request_queue_seconds"),
            ),
            Panel(
                "Prompt",
                "First step to first token.",
                "s",
                quantiles("finlora_request_prefill_seconds"),
            ),
            Panel(
                "Answer",
                "First token to last.",
                "s",
                quantiles("finlora_request_decode_seconds"),
            ),
        ],
        "Batches": [
            Panel(
                "Sequences of a step",
                "How well requests share steps.",
                SEQUENCES,
                quantiles("finlora_step_sequences"),
            ),
            Panel(
                "Steps",
                "A second, by server.",
                "ops",
                [rate("finlora_step_seconds_count", "instance")],
            ),
            Panel(
                "Busy",
                "Share of time in steps; at 100 % only larger batches give more.",
                "percentunit",
                [rate("finlora_step_seconds_sum", "instance")],
            ),
        ],
        "Limits": [
            REFUSALS,
            DISCONNECTS,
            CPU,
            Panel(
                "Adapters swapped",
                "Out of slots: the swap storm of a load test shows here.",
                "cps",
                [rate("finlora_adapter_evictions_total", "tier")],
            ),
            Panel(
                "Length of prompts",
                "Tokens of a prompt.",
                "suffix: tokens",
                quantiles("finlora_request_prompt_tokens"),
            ),
            Panel(
                "Length of answers",
                "Tokens generated for a sequence.",
                "suffix: tokens",
                quantiles("finlora_request_output_tokens"),
            ),
        ],
    },
    [INSTANCE],
)
