"""`finlora eval`: how good models are on rows whose labels are known."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.shipped import open_registry
from finlora.config import Settings, load_settings
from finlora.datasets.row_files import Columns
from finlora.errors import AdapterNotFoundError, ConfigError
from finlora.evaluation.answers import Answerer
from finlora.evaluation.arguments import SETTINGS, parser
from finlora.evaluation.findings import Findings, find
from finlora.evaluation.report import write_report
from finlora.evaluation.runner import Advance, evaluate
from finlora.evaluation.tables import Table, comparison_table, scores_table, speed_table
from finlora.evaluation.test_sets import TestSet, is_task, load_test_set, refuse_equal_names
from finlora.prompts import PromptTemplate

TABLE_OPTIONS = ("template", "label_values")
FILE_OPTIONS = ("labels", "text_column", "label_column", *TABLE_OPTIONS)


def main(argv: list[str]) -> int:
    """Evaluate and print. Raises FinLoRAError."""
    args = parser().parse_args(argv)
    settings = _settings(args)
    registry = open_registry(settings)
    test_sets = _test_sets(args, registry)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)  # before hours of scoring
    with _answerer(args, settings, registry) as answerer:
        findings = _run(args, answerer, test_sets)
    if args.json:
        sys.stdout.write(json.dumps(findings.as_dict(), indent=1) + "\n")
    else:
        _show(findings)
    if args.output is not None:
        for file in write_report(findings, args.output):
            _say(f"written: {file}")
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    flags = {name: getattr(args, name) for name in SETTINGS}
    return load_settings(model=args.base_model, **flags)


def _test_sets(args: argparse.Namespace, registry: AdapterRegistry) -> list[TestSet]:
    _refuse_unused(args)
    columns = _columns(args, registry)
    found = [
        load_test_set(name, args.data_dir, labels=args.labels, columns=columns, warn=_say)
        for name in args.data
    ]
    refuse_equal_names(found)
    return [s if args.max_rows is None else s.sample(args.max_rows) for s in found]


def _refuse_unused(args: argparse.Namespace) -> None:
    """Options of files that would change nothing. Raises ConfigError."""
    given = [name for name in FILE_OPTIONS if getattr(args, name)]
    if given and all(map(is_task, args.data)):
        raise ConfigError(f"{_flag(given[0])} is for files: {args.data[0]} has labels of its own")
    of_tables = [name for name in given if name in TABLE_OPTIONS]
    if of_tables and not {"text_column", "label_column"} & {*given}:
        raise ConfigError(
            f"{_flag(of_tables[0])} is for tables: name their columns with --text-column and "
            "--label-column"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _columns(args: argparse.Namespace, registry: AdapterRegistry) -> Columns | None:
    given = (args.text_column, args.label_column)
    if given == (None, None):
        return None
    if None in given:
        raise ConfigError("--text-column and --label-column go together")
    template = args.template or _own_template(args.model, registry)
    return Columns(*given, PromptTemplate(template), args.label_values)


def _own_template(models: Sequence[str], registry: AdapterRegistry) -> str:
    for name in models:
        # Names of the base, and of adapters that only a server has, are none here.
        with suppress(AdapterNotFoundError):
            template = registry.resolve(name).manifest.prompt_template
            if template is not None:
                return template
    raise ConfigError("no adapter here says what its prompts look like: give --template")


@contextmanager
def _answerer(
    args: argparse.Namespace, settings: Settings, registry: AdapterRegistry
) -> Iterator[Answerer]:
    if args.url is not None:
        from finlora.evaluation.server_answers import ServerAnswers

        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        with ServerAnswers(args.url, api_key=key) as server:
            yield server
        return
    # Imported here: it brings torch, which a server's client and a wrong file do not need.
    from finlora.evaluation.engine_answers import engine_answers

    _say(f"loading {settings.model} ({settings.quantization})")
    with engine_answers(settings, registry, args.model) as engine:
        yield engine


def _run(args: argparse.Namespace, answerer: Answerer, test_sets: list[TestSet]) -> Findings:
    num_rows = len(args.model) * sum(len(test_set.rows) for test_set in test_sets)
    with _progress(num_rows) as advance:
        outcomes = list(evaluate(answerer, args.model, test_sets, args.mode, advance=advance))
    return find(
        outcomes,
        subject=answerer.describe(),
        mode=args.mode,
        concurrency=answerer.concurrency,
        test_sets=test_sets,
        seed=args.seed,
    )


@contextmanager
def _progress(num_rows: int) -> Iterator[Advance]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=num_rows)
        yield lambda what: progress.update(task, advance=1, description=what)


def _show(findings: Findings) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    tables = [scores_table(findings), comparison_table(findings), speed_table(findings)]
    for table in tables:
        if table.rows:
            console.print(_rich(table))


def _rich(table: Table) -> RichTable:
    made = RichTable(title=table.caption, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(table.head):
        made.add_column(name, justify="left" if i < 2 else "right")
    for row in table.rows:
        made.add_row(*row)
    return made


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
