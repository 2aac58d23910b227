"""`finlora bench`: the engine in this process, without HTTP, beside the machine's own limits."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from finlora.bench.plan import Part, Plan
from finlora.config import Settings, load_settings
from finlora.flags import ENGINE_SETTINGS, add_settings_flags
from finlora.usage import Parser


def main(argv: list[str]) -> int:
    """Measure and print. Raises FinLoRAError."""
    options = vars(parser().parse_args(argv))
    settings = load_settings(**{name: options.pop(name) for name in ENGINE_SETTINGS})
    file: Path | None = options.pop("json")
    parts = tuple(options.pop("parts")) or tuple(Part)
    return _measure(settings, Plan(parts=parts, **options), file)


def _measure(settings: Settings, plan: Plan, file: Path | None) -> int:
    # Imported here: they bring torch, which --help and a mistyped option do not need.
    from finlora.bench.run import as_json, run
    from finlora.bench.table import table

    results = run(settings, plan, _say)
    Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(as_json(results), indent=1) + "\n", "utf-8")
    return 0


def parser() -> Parser:
    """The options of `finlora bench`."""
    parser = Parser(
        prog="finlora bench",
        description="Measure the engine in this process: prefill, decode, mixed adapters, swaps, "
        "memory. Adapters are random ones in a temporary registry. Run it on a quiet machine.",
    )
    add = parser.add_argument
    add("parts", nargs="*", type=_part, metavar="part", help=f"of {', '.join(Part)} (default: all)")
    add("--prompt-tokens", type=_sizes, default=Plan.prompt_tokens, help="prompt lengths")
    add("--num-prompts", type=_size, default=Plan.num_prompts, help="prompts in a prefill round")
    add("--batch-sizes", type=_sizes, default=Plan.batch_sizes, help="of decode steps")
    add("--context", type=_size, default=Plan.context, help="tokens of context in decode steps")
    add("--num-steps", type=_size, default=Plan.num_steps, help="timed decode steps")
    add("--adapters", type=int, default=Plan.adapters, help="adapters that are mixed")
    add("--rank", type=_size, default=Plan.rank, help="rank of the adapters")
    add("--rounds", type=_size, default=Plan.rounds, help="of prefill, and of mixed against base")
    add("--mixed-batch-size", type=_size, default=Plan.mixed_batch_size, help="requests in flight")
    add("--swaps", type=_size, default=Plan.swaps, help="adapters brought into a slot, each way")
    add("--json", type=Path, metavar="FILE", help="also write every figure there")
    engine = parser.add_argument_group("engine settings, as of finlora serve")
    add_settings_flags(engine, ENGINE_SETTINGS)
    return parser


def _size(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_size(part) for part in text.split(","))


def _say(what: str) -> None:
    sys.stderr.write(f"{what} ...\n")


def _part(text: str) -> Part:
    if text not in {*Part}:
        raise argparse.ArgumentTypeError(f"there is no part {text!r}, only {', '.join(Part)}")
    return Part(text)
