"""What the comparison measures: who is loaded how, beside whom."""

from dataclasses import dataclass, replace
from enum import StrEnum

from loadtest.peers.candidates import Candidate
from loadtest.peers.load import Load, Mix

# Ratios near 1 say nothing without an interval, and an interval nothing with few rounds.
CLOSE_ROUNDS = 7
LABELS = ("negative", "neutral", "positive")


class Traffic(StrEnum):
    """What the requests of one side ask for."""

    MIXED = "adapters mixed"
    BASE = "base only"
    MANY = "all adapters, Zipf"
    CHOICE = "adapters mixed, one of three labels"


class Metric(StrEnum):
    """What a ratio compares; more is better, except for seconds."""

    THROUGHPUT = "requests/s"
    LATENCY = "p50 ms"


@dataclass(frozen=True)
class Side:
    """One server under one traffic."""

    server: str
    traffic: Traffic = Traffic.MIXED

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.server}, {self.traffic}"


@dataclass(frozen=True)
class Scenario:
    """Sides that take turns under the same load; the first is compared with each of the others."""

    key: str
    title: str
    sides: tuple[Side, ...]
    clients: int = 32
    requests: int = 256
    max_tokens: int = 3
    rounds: int = 3
    metric: Metric = Metric.THROUGHPUT
    zipf_exponent: float = 1.0

    def load(self, side: Side, candidate: Candidate, models: tuple[str, ...], mixed: int) -> Load:
        """What the side's clients send; `mixed` of the adapters `models` make up mixed traffic."""
        asked = {Traffic.BASE: (candidate.base_name,), Traffic.MANY: models}
        return Load(
            models=asked.get(side.traffic, models[:mixed]),
            mix=Mix.ZIPF if side.traffic is Traffic.MANY else Mix.DISTINCT,
            clients=self.clients,
            requests=self.requests,
            warmup=self.clients,
            max_tokens=self.max_tokens,
            zipf_exponent=self.zipf_exponent,
            choices=LABELS if side.traffic is Traffic.CHOICE else (),
            lora_list=candidate.lora_list and side.traffic is not Traffic.BASE,
        )

    def with_sides(self, servers: set[str]) -> "Scenario":
        """Without the sides whose server is not there."""
        return replace(self, sides=tuple(side for side in self.sides if side.server in servers))


SCENARIOS = (
    Scenario(
        "mixed-3",
        "{n} adapters mixed, {clients} clients, {max_tokens} new tokens",
        (
            Side("finlora"),
            Side("peft"),
            Side("vllm"),
            Side("llama.cpp"),
            Side("vllm-base", Traffic.BASE),
        ),
    ),
    Scenario(
        "mixed-32",
        "{n} adapters mixed, {clients} clients, {max_tokens} new tokens",
        (
            Side("finlora"),
            Side("vllm"),
            Side("llama.cpp"),
            Side("vllm-base", Traffic.BASE),
        ),
        clients=16,
        requests=96,
        max_tokens=32,
    ),
    Scenario(
        "first-token",
        "one client, one new token: time to the answer",
        (
            Side("finlora"),
            Side("finlora", Traffic.BASE),
            Side("vllm-base", Traffic.BASE),
            Side("llama.cpp"),
        ),
        clients=1,
        requests=64,
        max_tokens=1,
        metric=Metric.LATENCY,
    ),
    Scenario(
        "mixed-vs-base",
        "{n} adapters mixed beside base only, same server",
        (Side("finlora"), Side("finlora", Traffic.BASE)),
        rounds=CLOSE_ROUNDS,
    ),
    Scenario(
        "unused-adapters",
        "base only: adapters enabled but unused beside --max-loras 0",
        (Side("finlora", Traffic.BASE), Side("finlora-no-adapters", Traffic.BASE)),
        rounds=CLOSE_ROUNDS,
    ),
    Scenario(
        "many-in-flight",
        "{in_flight} adapters (Zipf) beside {n}, {in_flight} slots, {clients} clients",
        (Side("finlora-in-flight", Traffic.MANY), Side("finlora-in-flight")),
        clients=96,
        requests=480,
        rounds=CLOSE_ROUNDS,
    ),
    Scenario(
        "many-registered",
        "{registered} registered adapters (Zipf 1.1) beside {n}, 32 slots",
        (Side("finlora-registered", Traffic.MANY), Side("finlora-registered")),
        rounds=CLOSE_ROUNDS,
        zipf_exponent=1.1,
    ),
    Scenario(
        "choice",
        "one of three labels beside {max_tokens} free tokens, same server",
        (Side("finlora", Traffic.CHOICE), Side("finlora")),
        rounds=CLOSE_ROUNDS,
    ),
    Scenario(
        "server-vs-engine",
        "the server beside its engine driven in process",
        (Side("finlora"), Side("engine")),
        rounds=CLOSE_ROUNDS,
    ),
)
COLD_ADAPTER = "cold-adapter"
WARM_START = "warm-start"
KEYS = (*(scenario.key for scenario in SCENARIOS), COLD_ADAPTER, WARM_START)
