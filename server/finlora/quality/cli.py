"""`finlora quality`: run the experiment, or what is missing of it, and write what it says."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from finlora.config import cache_folder
from finlora.evaluation.arguments import count
from finlora.evaluation.test_sets import TASKS, files_of, is_task
from finlora.quality.arms import ARMS
from finlora.quality.plan import DEFAULT, FULL, QUICK, Plan
from finlora.usage import Parser

OPTIONS = (
    "model", "data_dir", "arms", "seeds", "max_train_rows", "max_test_rows", "num_epochs", "device",
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Measure and report. Raises FinLoRAError; what was measured before is kept."""
    args = parser().parse_args(argv)
    plan = _plan(args)
    args.output.mkdir(parents=True, exist_ok=True)  # before hours of training
    # Imported here: it brings torch, which --help and a missing file do not need.
    from finlora.quality.experiment import Experiment
    from finlora.quality.figure import chart
    from finlora.quality.findings import find

    experiment = Experiment(plan, args.work, _Reporter())
    if not args.report_only:
        experiment.run()
    findings = find(experiment)
    (args.output / "quality.md").write_text(findings.markdown(), "utf-8")
    (args.output / "quality.json").write_text(
        json.dumps(findings.as_dict(), indent=1) + "\n", "utf-8"
    )
    picture = chart(findings)
    if picture is not None:
        (args.output / "quality.png").write_bytes(picture)
    sys.stdout.write(findings.markdown())
    return 0


def parser() -> Parser:
    """The options of `finlora quality`."""
    parser = Parser(
        prog="finlora quality",
        description="Train and serve the same adapters on 16 bits and on NF4, and compare. Goes on "
        "where it was stopped: everything measured is kept in the work folder.",
    )
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="five arms, one seed, few rows")
    size.add_argument(
        "--full",
        action="store_true",
        help="all arms with five seeds, all training rows, two epochs",
    )
    add("--model", metavar="TEXT", help="embedded base, folder or hub id")
    add("--data", nargs="+", required=True, metavar="FILE", help="rows to train on")
    add("--test", nargs="+", required=True, metavar="FILE_OR_TASK",
        help=f"rows to judge by: files, or {', '.join(TASKS)}")  # fmt: skip
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="FinLoRA's test files, and others that are not here",
    )
    add("--arms", type=_words, metavar="A,B,...", help=", ".join(arm.name for arm in ARMS))
    add("--seeds", type=_seeds, metavar="N,N,...", help="default: 0,1,2")
    add("--max-train-rows", type=count, metavar="N", help="rows of the training data, by a hash")
    add("--max-test-rows", type=count, metavar="N", help="rows of each test set, by a hash")
    add("--num-epochs", type=count, metavar="N", help="times the training rows are gone through")
    add("--device", help="cpu, cuda, cuda:N or auto")
    add("--work", type=Path, default=cache_folder() / "quality", metavar="DIR",
        help="adapters and results (default: in the cache folder)")  # fmt: skip
    add("--output", type=Path, default=Path("quality"), metavar="DIR", help="default: ./quality")
    add("--report-only", action="store_true", help="measure nothing, report what there is")
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    size = QUICK if args.quick else FULL if args.full else DEFAULT
    given = {name: getattr(args, name) for name in OPTIONS}
    for name in args.test:
        if not is_task(name):
            files_of(name, args.data_dir)  # refuses what is not there, before torch is imported
    return replace(
        size,
        train=tuple(args.data),
        tests=tuple(args.test),
        **{name: value for name, value in given.items() if value is not None},
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are different numbers, 0 or more")
    return seeds


class _Reporter:
    """Lines with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._started:7.0f} s  {what}\n")
        sys.stderr.flush()
