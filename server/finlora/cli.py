"""`finlora`: picks a command and imports nothing but that command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from finlora import __version__
from finlora.bases.quiet import quiet_libraries
from finlora.errors import FinLoRAError

COMMANDS = {
    "serve": ("finlora.api.cli", "serve a base and its adapters over HTTP"),
    "train": ("finlora.training.cli", "train an adapter and register it"),
    "data": ("finlora.datasets.cli", "make training files from their public sources"),
    "eval": ("finlora.evaluation.cli", "score adapters on rows whose labels are known"),
    "quality": ("finlora.quality.cli", "compare NF4 with an adapter and 16 bits with one"),
    "predict": ("finlora.predict.cli", "label the rows of a CSV, JSON-lines or Parquet file"),
    "adapters": ("finlora.adapters.cli", "list, add, verify, promote and remove adapters"),
    "bench": ("finlora.bench.cli", "measure the engine beside what the machine can do"),
    "models": ("finlora.bases.cli", "list and fetch base models"),
}
INTERRUPTED = 130  # 128 + SIGINT, what shells expect


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 1: an error of ours, told in one line; 2: wrong usage."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    module, _ = COMMANDS[args.command]
    try:
        code: int = import_module(module).main(args.arguments)
    except FinLoRAError as error:
        sys.stderr.write(f"finlora {args.command}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finlora",
        description="One quantised base model, a different LoRA adapter in every request.",
        epilog="commands:\n" + "".join(f"  {n:10} {what}\n" for n, (_, what) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"finlora {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`<command> --help` tells")
    return parser
