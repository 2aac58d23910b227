"""`finlora`: picks a command and imports nothing but that command."""

import argparse
import logging
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from finlora import __version__
from finlora.bases.quiet import quiet_libraries
from finlora.failures import MEANINGS, debug_wanted, run
from finlora.usage import Parser

COMMANDS = {
    "serve": ("finlora.api.cli", "serve a base and its adapters over HTTP"),
    "predict": ("finlora.predict.cli", "label the rows of a CSV, JSON-lines or Parquet file"),
    "train": ("finlora.training.cli", "train an adapter and register it"),
    "data": ("finlora.datasets.cli", "make training files from their public sources"),
    "eval": ("finlora.evaluation.cli", "score adapters on rows whose labels are known"),
    "quality": ("finlora.quality.cli", "compare NF4 with an adapter and 16 bits with one"),
    "batch": ("finlora.batch.cli", "answer a file in OpenAI's batch format"),
    "adapters": ("finlora.adapters.cli", "list, add, verify, promote and remove adapters"),
    "bench": ("finlora.bench.cli", "measure the engine beside what the machine can do"),
    "doctor": ("finlora.doctor.cli", "tell how well this machine can serve, and what to change"),
    "models": ("finlora.bases.cli", "list and fetch base models"),
}
DEBUG = "--debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; how it ended (failures.ExitCode)."""
    args = parser().parse_args(argv)
    debug, arguments = _take_debug(args.arguments)
    debug = debug or args.debug or debug_wanted()
    if debug:
        logging.getLogger("finlora").setLevel(logging.DEBUG)
    quiet_libraries()
    module, _ = COMMANDS[args.command]

    def command() -> int:
        code: int = import_module(module).main(arguments)
        return code

    return run(f"finlora {args.command}", command, debug=debug)


def parser() -> Parser:
    """The options before the command."""
    commands = "".join(f"  {name:10} {what}\n" for name, (_, what) in COMMANDS.items())
    codes = "".join(f"  {code.value:<10} {what}\n" for code, what in MEANINGS.items())
    parser = Parser(
        prog="finlora",
        description="One quantised base model, a different LoRA adapter in every request.",
        epilog=f"commands:\n{commands}\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"finlora {__version__}")
    parser.add_argument(DEBUG, action="store_true", help="show tracebacks (also FINLORA_DEBUG=1)")
    parser.add_argument("command", type=_command, metavar="command", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`<command> --help` tells")
    return parser


def _command(name: str) -> str:
    if name in COMMANDS:
        return name
    close = get_close_matches(name, COMMANDS, n=1)
    meant = f", did you mean {close[0]!r}?" if close else f" (there are {', '.join(COMMANDS)})"
    raise argparse.ArgumentTypeError(f"there is no command {name!r}{meant}")


def _take_debug(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """The flag works behind the command too."""
    return DEBUG in arguments, [argument for argument in arguments if argument != DEBUG]


if __name__ == "__main__":
    sys.exit(main())
