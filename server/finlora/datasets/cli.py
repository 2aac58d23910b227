"""finlora data: which data FinLoRA's tasks are made of, and making their files."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finlora.datasets.tasks import TASKS, Source, Task
from finlora.errors import ConfigError
from finlora.usage import Parser

MAX_SHOWN_TARGETS = 12


def main(argv: list[str]) -> int:
    """Run one command. Raises FinLoRAError."""
    args = parser().parse_args(argv)
    if args.command == "list":
        return _list(as_json=args.json)
    return _prepare(args)


def parser() -> Parser:
    """All commands with their options."""
    parser = Parser(prog="finlora data", description="Training and test files of FinLoRA's tasks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="tasks, their sources and licences")
    listing.add_argument("--json", action="store_true", help="machine-readable output")
    prepare = commands.add_parser("prepare", help="make a task's files from its public sources")
    prepare.add_argument("task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    prepare.add_argument(
        "--from", dest="local", type=Path, metavar="DIR", help="folders of the sources, not the hub"
    )
    prepare.add_argument(
        "--only", action="append", metavar="SOURCE", help="leave out the task's other sources"
    )
    prepare.add_argument("--output", type=Path, default=Path("data"), metavar="DIR")
    return parser


def _list(*, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps([_facts(task) for task in TASKS.values()], indent=1) + "\n")
        return 0
    for task in TASKS.values():
        sys.stdout.write(f"{task.name}: {task.train_file}, {task.test_file}\n")
        for source in task.sources:
            where = source.url or f"a folder with {source.needs}"
            sys.stdout.write(f"  {source.name}: {source.title} ({source.licence}), {where}\n")
    return 0


def _facts(task: Task) -> dict[str, Any]:
    sources = [
        {key: getattr(source, key) for key in ("name", "title", "licence", "url", "needs")}
        for source in task.sources
    ]
    files = {"train_file": task.train_file, "test_file": task.test_file}
    return {"name": task.name, **files, "sources": sources}


def _prepare(args: argparse.Namespace) -> int:
    # Imported here: the list must not wait for the readers.
    from finlora.datasets.building import prepare

    task = TASKS[args.task]
    made = prepare(task, _sources(task, args.only), args.output, args.local, _report)
    if made.num_overlapping:
        _report(f"{made.num_overlapping} training rows left out: their text is a test row's")
    for target, count in made.targets.most_common(MAX_SHOWN_TARGETS):
        _report(f"  {target[:60]}: {count} to train on")
    for side, file in made.files.items():
        sys.stdout.write(f"{file}: {made.num_rows[side]} rows\n")
    return 0


def _sources(task: Task, only: list[str] | None) -> list[Source]:
    known = {source.name: source for source in task.sources}
    for name in only or ():
        if name not in known:
            raise ConfigError(f"{task.name} has no source {name!r}: {', '.join(known)}")
    return [source for source in task.sources if only is None or source.name in only]


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
