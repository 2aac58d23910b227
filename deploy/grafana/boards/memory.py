"""What base, adapters and texts hold."""

from deploy.grafana.boards.shared import INSTANCE
from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import HERE, now, rate, ratio

MEMORY = Dashboard(
    "memory",
    "finlora: memory",
    "What base, adapters and texts hold, beside what the process may use.",
    {
        "Process": [
            Panel(
                "Resident, and the limit",
                "Memory of the process, and the container's limit or the machine's memory.",
                "bytes",
                [
                    Query(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),
                    Query(f"finlora_memory_limit_bytes{{{HERE}}}", "{{instance}} limit"),
                ],
            ),
            Panel(
                "In use",
                "Resident memory as a share of the limit.",
                "percentunit",
                [Query(f"instance:finlora_memory:ratio{{{HERE}}}")],
            ),
            Panel(
                "By part",
                "What the server knows to hold; the rest is libraries and activations.",
                "bytes",
                [now("finlora_memory_bytes", "part")],
                stacked=True,
            ),
        ],
        "Base and adapters": [
            Panel(
                "Base",
                "Weights: quantised layers, their scales, embeddings, the rest.",
                "bytes",
                [now("finlora_base_model_bytes", "part")],
                stacked=True,
            ),
            Panel(
                "Adapters",
                "Weights in slots and in RAM.",
                "bytes",
                [now("finlora_adapter_bytes", "tier")],
            ),
            Panel(
                "CUDA",
                "Of the allocator: in use, reserved, and the peak. Empty on a CPU.",
                "bytes",
                [now("finlora_cuda_memory_bytes", "kind")],
                needs_cuda=True,
            ),
        ],
        "Keys and values": [
            Panel(
                "Pages in use",
                "By running sequences; at 100 % sequences are put back.",
                "percentunit",
                [Query(f"finlora_kv_cache_usage_ratio{{{HERE}}}")],
            ),
            Panel(
                "KV cache",
                "Its size, and what of it holds text for later requests.",
                "bytes",
                [
                    Query(f"sum(finlora_kv_cache_bytes{{{HERE}}})", "size"),
                    Query(f"sum(finlora_prefix_cache_bytes{{{HERE}}})", "of it prefixes"),
                ],
            ),
            Panel(
                "Prefix cache",
                "Share of prompt tokens that need not be computed.",
                "percentunit",
                [
                    ratio(
                        "finlora_prompt_tokens_cached_total",
                        "finlora_prompt_tokens_total",
                        "cached",
                    )
                ],
            ),
            Panel(
                "Preemptions",
                "Sequences put back for lack of pages and computed again later.",
                "cps",
                [rate("finlora_preemptions_total", "instance")],
            ),
        ],
    },
    [INSTANCE],
)
