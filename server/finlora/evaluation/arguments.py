"""The command line of `finlora eval`: options and their help. Imports nothing heavy."""

import argparse
from pathlib import Path

from finlora.evaluation.answers import Mode
from finlora.flags import add_settings_flags
from finlora.usage import Parser

SETTINGS = ("quantization", "device", "registry", "threads", "max_num_seqs", "max_model_len")


def parser() -> Parser:
    """All options."""
    made = Parser(
        prog="finlora eval",
        description="Score models on rows whose labels are known, through the serving engine.",
    )
    add = made.add_argument
    add(
        "--model",
        type=_words,
        default=["base"],
        metavar="NAME[,NAME...]",
        help="adapters, or `base`; later ones are compared with the first (default: base)",
    )
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE_OR_TASK",
        help="fpb, fiqa, tfns, nwgi, or JSON lines, CSV or Parquet with labels",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="FinLoRA's test files, else from the source; and other files that are not here",
    )
    add(
        "--mode",
        type=Mode,
        choices=list(Mode),
        default=Mode.SCORE,
        help="exact label probabilities, or ten tokens as FinLoRA does (default: score)",
    )
    add("--url", help="ask this server instead of loading the base (key: FINLORA_API_KEY)")
    add("--output", type=Path, metavar="DIR", help="write report.html, .md, .png, JSON there")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--max-rows", type=count, metavar="N", help="of each test set, chosen by a hash")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    _add_columns(made.add_argument_group("files"))
    engine = made.add_argument_group("engine, when no --url is given")
    engine.add_argument("--base-model", metavar="TEXT", help="embedded base, folder or hub id")
    add_settings_flags(engine, SETTINGS)
    return made


def _add_columns(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--labels", type=_words, metavar="A,B,...", help="all labels (default: those in the file)")
    add(
        "--text-column",
        metavar="NAME",
        help="text column of a table; each text is put into the template",
    )
    add("--label-column", metavar="NAME", help="of the table")
    add("--label-values", type=_pairs, default={}, metavar="0=A,1=B", help="cell to label")
    add("--template", help="prompt around {input} (default: the first adapter's own)")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for part in text.split(","):
        cell, equals, label = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} is not VALUE=LABEL")
        pairs[cell.strip()] = label.strip()
    return pairs


def count(text: str) -> int:
    """A number of things on the command line, one at least."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
