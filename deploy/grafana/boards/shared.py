"""What several dashboards show."""

from deploy.grafana.panels import Panel, Query, label_variable
from deploy.grafana.queries import HERE, quantiles, rate, total_rate

INSTANCE = label_variable("instance", "finlora_ready")
TOKENS = "suffix: tokens/s"
SEQUENCES = "suffix: sequences"

FIRST_TOKEN = Panel(
    "Time to first token",
    "Arrival of a sequence to its first token, queue and adapter load included.",
    "s",
    quantiles("finlora_time_to_first_token_seconds"),
)
INTER_TOKEN = Panel(
    "Time between tokens",
    "Between two tokens of the same sequence: how fluently a stream is read.",
    "s",
    quantiles("finlora_inter_token_seconds"),
)
REQUEST = Panel(
    "Time of a sequence",
    "Arrival to end.",
    "s",
    quantiles("finlora_request_seconds"),
)
TOKEN_RATES = Panel(
    "Tokens",
    "Of prompts, of these from the prefix cache, and generated.",
    TOKENS,
    [
        total_rate("finlora_prompt_tokens_total", "prompt"),
        total_rate("finlora_prompt_tokens_cached_total", "of it cached"),
        total_rate("finlora_output_tokens_total", "generated"),
    ],
)
QUEUE_AND_BATCH = Panel(
    "Running and waiting",
    "Sequences in the batch, and sequences in the queue.",
    SEQUENCES,
    [
        Query(f"sum(finlora_requests_running{{{HERE}}})", "running"),
        Query(f"sum(finlora_requests_waiting{{{HERE}}})", "waiting"),
    ],
)
REFUSALS = Panel(
    "Refused requests",
    "By error code. `overloaded`: the queue is full.",
    "reqps",
    [rate("finlora_requests_rejected_total", "code")],
)
DISCONNECTS = Panel(
    "Clients that left",
    "By what their sequence was doing: waiting, its prompt, or its answer.",
    "cps",
    [rate("finlora_disconnects_total", "phase")],
)
CPU = Panel(
    "Processor",
    "Cores in use by the server process.",
    "suffix: cores",
    [rate("process_cpu_seconds_total", "instance")],
)
