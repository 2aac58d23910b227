"""`finlora train NAME --method restore`: options, and what is printed."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finlora.adapters.shipped import open_registry
from finlora.config import DEFAULT_BASE, load_settings
from finlora.training.config import MAX_RANK, MAX_SEED
from finlora.training.restoration.order import RestorationOrder
from finlora.usage import Parser

DEFAULTS = {
    name: RestorationOrder.__dataclass_fields__[name].default
    for name in (
        "num_steps", "batch_size", "length", "calibration_sequences", "held_out_sequences",
        "learning_rate", "seed",
    )
}  # fmt: skip
MAX_COUNT = 2**31 - 1
# A sequence of one token predicts nothing. Of what is not named here there must be one.
BOUNDS = {"length": (2, MAX_COUNT), "seed": (0, MAX_SEED)}


def main(argv: list[str]) -> int:
    """Restore, register, print what it achieved. Raises FinLoRAError."""
    args = parser().parse_args(argv)
    order = _order(args, argv)
    for rank in order.ranks:
        variant = order.config(rank).variant
        order.registry.check_name(order.adapter_name(rank), variant, Path(order.model).name)
    # Imported here: they bring torch, which --help and a mistyped option do not need.
    from finlora.training.restoration.registration import register
    from finlora.training.restoration.restoration import Restoration

    restoration = Restoration(order, _say)
    for restored in restoration.each():
        adapter = register(order, restored, restoration.base)
        _say(f"registered {adapter.reference} in {order.registry.folder}")
        if args.json is not None:
            _write(args.json, restored.findings.as_dict())
    sys.stdout.write(restoration.findings().markdown())
    return 0


def _write(file: Path, facts: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _order(args: argparse.Namespace, argv: list[str]) -> RestorationOrder:
    return RestorationOrder(
        name=args.name,
        model=args.base_model,
        texts=tuple(args.text),
        held_out=tuple(args.held_out),
        ranks=tuple(args.rank),
        registry=open_registry(load_settings(registry=args.registry)),
        command=_command(argv),
        device=args.device,
        licence=args.licence,
        **{name: getattr(args, name) for name in DEFAULTS},
    )


def _command(argv: list[str]) -> str:
    """Files by their names alone: where they stand is the user's own business."""
    return shlex.join(["finlora", "train", *(Path(w).name if "/" in w else w for w in argv)])


def parser() -> Parser:
    """The options of `finlora train --method restore`."""
    parser = Parser(
        prog="finlora train NAME --method restore",
        description="Make an adapter that brings the NF4 base back to its 16-bit original: from "
        "the quantisation error itself, then by distillation over unlabelled text.",
    )
    add = parser.add_argument
    add("name", help="of the adapter")
    add("--method", choices=("restore",), help="this one")
    add("--text", type=Path, nargs="+", required=True, metavar="FILE",
        help="txt, JSON lines, CSV or Parquet")  # fmt: skip
    add("--held-out", type=Path, nargs="+", default=[], metavar="FILE",
        help="text to measure on (default: a tenth of the other)")  # fmt: skip
    add("--rank", type=_ranks, default=[16], metavar="R[,R...]",
        help="one adapter for each (default: 16)")  # fmt: skip
    add(
        "--base-model", default=DEFAULT_BASE, metavar="TEXT", help="embedded base, folder or hub id"
    )
    add("--registry", type=Path, metavar="DIR", help="folder of the adapter registry")
    add("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    add("--licence", help="licence of the adapter")
    add("--json", type=Path, metavar="FILE", help="also write the figures there")
    for name, default in DEFAULTS.items():
        kind = _rate if isinstance(default, float) else _whole(*BOUNDS.get(name, (1, MAX_COUNT)))
        add(f"--{name.replace('_', '-')}", type=kind, default=default, metavar="N",
            help=f"default: {default}")  # fmt: skip
    return parser


def _ranks(text: str) -> list[int]:
    return list(dict.fromkeys(map(_whole(1, MAX_RANK), text.split(","))))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = int(text)
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return found

    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return rate


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
