"""Who is asked, what they answer, and how they come and go."""

from deploy.grafana.boards.shared import INSTANCE, TOKENS
from deploy.grafana.panels import Dashboard, Panel, Query, label_variable
from deploy.grafana.queries import HERE, now, p95_by, rate, top

ADAPTER = label_variable("adapter", "finlora_requests_total")
NAMED = f'{HERE}, adapter=~"$adapter"'

ADAPTERS = Dashboard(
    "adapters",
    "finlora: adapters",
    "Who is asked, what they answer, and how they come and go.",
    {
        "Traffic": [
            Panel(
                "Sequences",
                "The ten most asked of the chosen adapters; `_base` is no adapter.",
                "reqps",
                [top(rate("finlora_requests_total", "adapter", NAMED))],
            ),
            Panel(
                "Generated tokens",
                "The ten that generate most.",
                TOKENS,
                [top(rate("finlora_output_tokens_total", "adapter", NAMED))],
            ),
            Panel(
                "Share of the engine",
                "Seconds of steps a second, shared out by rows of the batch.",
                "percentunit",
                [top(rate("finlora_adapter_seconds_total", "adapter", NAMED))],
                stacked=True,
            ),
        ],
        "Answers": [
            Panel(
                "Predicted labels",
                "Share of each label among an adapter's answers in the last hour.",
                "percentunit",
                [
                    Query(
                        'adapter:finlora_predicted_labels:share_1h{adapter=~"$adapter"}',
                        "{{adapter}} {{label}}",
                    )
                ],
                width=12,
            ),
            Panel(
                "Label drift",
                "Distance between the labels of the last hour and of the last day: 0 the same, "
                "1 nothing in common.",
                "percentunit",
                [
                    Query(
                        'adapter:finlora_predicted_labels:drift{adapter=~"$adapter"}',
                        "{{adapter}}",
                    )
                ],
                width=12,
            ),
        ],
        "Faults": [
            Panel(
                "Failed sequences",
                "Ended with an error of the server.",
                "reqps",
                [top(rate("finlora_requests_total", "adapter", f'{NAMED}, reason="error"'))],
            ),
            Panel(
                "Failed loads",
                "In the last hour. The request's log line has the reason.",
                "short",
                [
                    Query(
                        "topk(10, sum by (adapter) "
                        f"(increase(finlora_adapter_load_failures_total{{{NAMED}}}[1h])))",
                        "{{adapter}}",
                    )
                ],
            ),
            Panel(
                "Rows that are not finite",
                "In the last hour: weights that overflow, or a fault of the machine.",
                "short",
                [
                    Query(
                        "topk(10, sum by (adapter) "
                        f"(increase(finlora_non_finite_rows_total{{{NAMED}}}[1h])))",
                        "{{adapter}}",
                    )
                ],
            ),
        ],
        "Tiers": [
            Panel(
                "Held",
                "Adapters in slots, where they can run, and in RAM, one swap away from it.",
                "suffix: adapters",
                [now("finlora_adapters_resident", "tier")],
            ),
            Panel(
                "Loads",
                "Adapters that came into a tier: `ram` from disk, `slot` from RAM.",
                "cps",
                [rate("finlora_adapter_loads_total", "tier")],
            ),
            Panel(
                "Evictions",
                "Adapters that made room. Many from slots: more are asked for than fit.",
                "cps",
                [rate("finlora_adapter_evictions_total", "tier")],
            ),
            Panel(
                "Time of a load, p95",
                "From disk into RAM, and from RAM into a slot.",
                "s",
                [p95_by("finlora_adapter_load_seconds", "tier")],
            ),
            Panel(
                "Versions held",
                "Of the chosen adapters, over all tiers; the ten with most.",
                "suffix: versions",
                [top(now("finlora_adapter_resident", "adapter", NAMED))],
            ),
            Panel(
                "Prompt tokens from the prefix cache",
                "As a share of an adapter's prompt tokens.",
                "percentunit",
                [
                    Query(
                        "sum by (adapter) (rate(finlora_prompt_tokens_cached_total"
                        f"{{{NAMED}}}[$__rate_interval])) / sum by (adapter) "
                        f"(rate(finlora_prompt_tokens_total{{{NAMED}}}[$__rate_interval]))",
                        "{{adapter}}",
                    )
                ],
            ),
        ],
    },
    [INSTANCE, ADAPTER],
)
