"""One run of `finlora bench`, part by part."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from finlora.bench.driver import Mix
from finlora.bench.machine import machine_facts
from finlora.bench.parts import (
    BASE_ONLY,
    Decode,
    Memory,
    Mixed,
    Prefill,
    decode,
    memory,
    mixed,
    prefill,
    process_bytes,
)
from finlora.bench.plan import Part, Plan
from finlora.bench.roofline import Rates, measure_rates
from finlora.bench.subject import Subject, subject
from finlora.bench.swap import Swap, swap
from finlora.config import Settings
from finlora.errors import ConfigError


@dataclass(slots=True)
class Results:
    """Everything one run found; parts that were not asked for stay empty."""

    settings: dict[str, Any]
    plan: Plan
    machine: dict[str, Any]
    rates: Rates
    prefill: list[Prefill] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)
    mixed: list[Mixed] = field(default_factory=list)
    swap: list[Swap] = field(default_factory=list)
    memory: Memory | None = None


def run(settings: Settings, plan: Plan, say: Callable[[str], None]) -> Results:
    """Measure the plan's parts; `say` is told what is being done. Raises FinLoRAError."""
    own = _widened(settings, plan)
    before = process_bytes()
    say(f"loading {own.model} ({own.quantization})")
    with subject(own, num_adapters=plan.adapters, rank=plan.rank) as made:
        say("measuring what the machine can do")
        shapes = made.engine.spec.linear_layers.values()
        rates = measure_rates(shapes, dtype=made.dtype, device=made.device)
        shown = own.model_dump(mode="json", exclude={"api_key", "admin_key"})
        results = Results(shown, plan, machine_facts(), rates)
        _measure(made, plan, results, say)
        if Part.MEMORY in plan.parts:
            results.memory = memory(made, before)
    if Part.SWAP in plan.parts:
        say("swapping adapters")
        results.swap = swap(own, rank=plan.rank, samples=plan.swaps)
    return results


def as_json(results: Results) -> dict[str, Any]:
    """The results, ready for JSON."""
    return asdict(results)


def _measure(made: Subject, plan: Plan, results: Results, say: Callable[[str], None]) -> None:
    mixes: Sequence[Mix] = (BASE_ONLY, made.adapters) if made.adapters else (BASE_ONLY,)
    if Part.PREFILL in plan.parts:
        say("prefill")
        lengths = product(plan.prompt_tokens, mixes)
        results.prefill = [_prefill(made, plan, results.rates, *each) for each in lengths]
    if Part.DECODE in plan.parts:
        say("decode")
        sizes = product(plan.batch_sizes, mixes)
        results.decode = [_decode(made, plan, results.rates, *each) for each in sizes]
    if Part.MIXED in plan.parts and made.adapters:
        say("adapters against base only")
        results.mixed = list(
            mixed(
                made,
                mix=made.adapters,
                rank=plan.rank,
                prompt_tokens=plan.prompt_tokens[0],
                batch_size=plan.mixed_batch_size,
                rounds=plan.rounds,
            )
        )


def _prefill(made: Subject, plan: Plan, rates: Rates, prompt_tokens: int, mix: Mix) -> Prefill:
    # Long prompts: as many tokens in all as with the shortest, and one prompt at least.
    fewer = plan.num_prompts * plan.prompt_tokens[0] // prompt_tokens
    return prefill(
        made,
        rates,
        prompt_tokens=prompt_tokens,
        num_prompts=max(1, min(plan.num_prompts, fewer)),
        mix=mix,
        rounds=plan.rounds,
    )


def _decode(made: Subject, plan: Plan, rates: Rates, batch_size: int, mix: Mix) -> Decode:
    return decode(
        made,
        rates,
        batch_size=batch_size,
        context=plan.context,
        mix=mix,
        num_steps=plan.num_steps,
    )


def _widened(settings: Settings, plan: Plan) -> Settings:
    """The settings with room for the largest batch. Raises ConfigError when adapters do not fit."""
    if plan.adapters > settings.max_loras:
        raise ConfigError(
            f"{plan.adapters} adapters need as many slots: --max-loras {plan.adapters}"
        )
    if plan.rank > settings.max_lora_rank:
        raise ConfigError(f"rank {plan.rank} needs --max-lora-rank {plan.rank}")
    largest = max(*plan.batch_sizes, plan.mixed_batch_size)
    return settings.model_copy(update={"max_num_seqs": max(settings.max_num_seqs, largest)})
