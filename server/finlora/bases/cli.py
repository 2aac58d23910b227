"""`finlora models list|fetch|show|inspect`: which bases are on disk, and getting one there."""

import json
import logging
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from finlora.bases.locate import locate
from finlora.bases.state import BaseState, base_state, known_bases
from finlora.config import DEFAULT_BASE, Quantization
from finlora.errors import BaseModelError
from finlora.usage import Parser


def main(argv: list[str]) -> int:
    """Run one command. Raises BaseModelError; usage errors exit with 2."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.action == "fetch":
        _fetch(args.name, Quantization(args.quantization))
    if args.action == "inspect":
        _inspect(args.name, as_json=args.json)
    elif args.action == "list":
        _show_all(known_bases(), as_json=args.json)
    else:
        _show(base_state(args.name), as_json=args.json)
    return 0


def parser() -> Parser:
    """All actions with their options."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = Parser(prog="finlora models", description="Base models on disk.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", parents=[common], help="known bases and what of them is on disk")
    fetch = actions.add_parser("fetch", parents=[common], help="fetch and quantise a base")
    show = actions.add_parser("show", parents=[common], help="the facts of one base")
    inspect = actions.add_parser(
        "inspect", parents=[common], help="what four and eight bits cost: error, scales, memory"
    )
    for action in (fetch, show, inspect):
        action.add_argument(
            "name", nargs="?", default=DEFAULT_BASE, help="embedded name, local folder or hub id"
        )
    fetch.add_argument(
        "--quantization",
        choices=[str(kind) for kind in Quantization],
        default=str(Quantization.NF4),
        help="checkpoint to prepare (default: nf4)",
    )
    return parser


def _fetch(name: str, quantization: Quantization) -> None:
    locate(name)
    # Imported here: the other commands, and most errors, must not wait for torch.
    from finlora.model import prepare_base

    prepare_base(name, quantization)


def _inspect(name: str, *, as_json: bool) -> None:
    # Imported here, as above.
    from finlora.bases import inspection, inspection_report
    from finlora.model import base_spec, measured_memory

    spec = base_spec(name)
    found = list(inspection.layer_errors(locate(name), spec.linear_layers))
    layers, scales = [layer for layer, _ in found], found[0][1]
    memory = measured_memory(name)
    if as_json:
        report = inspection_report.as_json(layers, scales, memory)
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in inspection_report.tables(layers, scales, memory):
        console.print(table, "")


def _show_all(bases: list[BaseState], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([_facts(base) for base in bases], indent=1) + "\n")
        return
    table = Table("BASE", "ON DISK", "QUANTISED", box=None, pad_edge=False)
    for base in bases:
        kinds = (f"{kind} {_size(size)}" for kind, size in base.quantized_bytes.items())
        on_disk = "not fetched" if base.folder is None else _size(base.source_bytes)
        table.add_row(base.name, on_disk, ", ".join(kinds) or "-")
    Console().print(table)


def _show(base: BaseState, *, as_json: bool) -> None:
    if base.folder is None:
        raise BaseModelError(
            f"{base.name} is not on disk: `finlora models fetch {base.name}` brings an embedded "
            "base or one of the hub, `finlora models list` shows what is here"
        )
    facts = _facts(base)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    for name, value in facts.items():
        sys.stdout.write(f"{name.replace('_', ' '):24} {value}\n")


def _facts(base: BaseState) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": base.name,
        "embedded": base.embedded,
        "folder": None if base.folder is None else str(base.folder),
        "source_bytes": base.source_bytes,
        "quantized_bytes": base.quantized_bytes,
    }
    if base.spec is not None:
        spec = asdict(base.spec)
        facts["num_linear_layers"] = len(spec.pop("linear_layers"))
        facts |= {key: value for key, value in spec.items() if key != "name"}
    return facts


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1024**2:,.0f} MiB"
