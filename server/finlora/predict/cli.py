"""`finlora predict`: a file of texts in, the same rows with labels and probabilities out."""

import argparse
from contextlib import AbstractContextManager, closing
from pathlib import Path

from finlora.adapters.arguments import comma_separated
from finlora.failures import ExitCode
from finlora.flags import add_settings_flags
from finlora.predict.columns import AddedColumns, text_column
from finlora.predict.destination import Destination
from finlora.predict.formats import STANDARD_STREAM, Format, format_of
from finlora.predict.labeller import Labeller, Question, local_labeller
from finlora.predict.progress import show_warnings, watched
from finlora.predict.run import Run, Tally
from finlora.predict.sources import open_source
from finlora.predict.where import SETTINGS, engine_settings, server_key
from finlora.usage import Parser


def main(argv: list[str]) -> int:
    """Label a file. 3: some rows have errors. Raises FinLoRAError."""
    args = parser().parse_args(argv)
    show_warnings()
    input_kind = format_of(args.input, args.input_format, "--input-format")
    destination = _destination(args, input_kind)
    destination.prepare()
    with open_source(args.input, input_kind) as source:
        column = text_column(source.columns, args.text_column)
        with _labeller(args) as labeller:
            added = AddedColumns(labeller.labels, args.prefix)
            output = destination.open(source, column, added, labeller.identity)
            fixed = destination.columns_are_fixed
            with closing(output), watched() as view:
                run = Run(source, column, added, output, view, columns_are_fixed=fixed)
                tally = run.label_all(labeller)
                view.line(_summary(tally, args.output))
    return ExitCode.PARTLY if tally.num_bad else ExitCode.DONE


def parser() -> Parser:
    """The options of `finlora predict`."""
    parser = Parser(
        prog="finlora predict",
        description="Label every row of a CSV, JSON-lines or Parquet file: the output has the "
        "input's columns, the label, the probability of every label, and an error where there is "
        "no label. An interrupted run goes on where it ended when it is started again.",
    )
    add = parser.add_argument
    add("input", type=Path, help="file with the texts; - is standard input")
    add("--adapter", help="who labels: name, alias or name@digest (default: the bare base)")
    add("-o", "--output", type=Path, default=STANDARD_STREAM, help="default: standard output")
    add("--text-column", metavar="NAME", help="default: headline, text, ... or the only one")
    add(
        "--labels",
        type=comma_separated,
        metavar="A,B,...",
        help="what to choose from (default: the adapter's own)",
    )
    add("--template", help="prompt around {input} (default: the adapter's own)")
    add("--prefix", default="", metavar="TEXT", help="in front of the added columns' names")
    add("--overwrite", action="store_true", help="replace the output instead of going on with it")
    add("--url", help="ask this server instead of loading the base (key: FINLORA_API_KEY)")
    for side in ("input", "output"):
        add(f"--{side}-format", type=Format, choices=list(Format), help="default: by the suffix")
    engine = parser.add_argument_group("engine settings, as of finlora serve")
    add_settings_flags(engine, SETTINGS)
    return parser


def _destination(args: argparse.Namespace, input_kind: Format) -> Destination:
    kind = args.output_format
    if kind is None and args.output == STANDARD_STREAM and input_kind is not Format.PARQUET:
        kind = input_kind
    return Destination(
        args.output,
        format_of(args.output, kind, "--output-format"),
        args.input,
        input_kind,
        overwrite=args.overwrite,
    )


def _labeller(args: argparse.Namespace) -> AbstractContextManager[Labeller]:
    labels = None if args.labels is None else tuple(args.labels)
    question = Question(args.adapter, labels, args.template)
    if args.url is None:
        return local_labeller(engine_settings(args), question)
    key = server_key(args)
    from finlora.predict.remote import remote_labeller

    return remote_labeller(args.url, key, question)


def _summary(tally: Tally, output: Path) -> str:
    where = "standard output" if output == STANDARD_STREAM else str(output)
    bad = f", {tally.num_bad:,} of them with an error instead of a label" if tally.num_bad else ""
    return f"{tally.num_rows:,} rows in {where}{bad}"
