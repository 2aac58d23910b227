"""`finlora-train NAME`, the same as `finlora train NAME`."""

import argparse
import json
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from finlora.adapters.shipped import open_registry
from finlora.bases.quiet import quiet_libraries
from finlora.config import cache_folder, load_settings
from finlora.errors import ConfigError
from finlora.failures import debug_wanted
from finlora.failures import run as run_command
from finlora.training.config import TrainingConfig
from finlora.training.config_files import SHIPPED_CONFIGS, load_config, read_configs
from finlora.training.trackers import TRACKERS
from finlora.usage import Parser

ANSWERS, RESTORE = "answers", "restore"

if TYPE_CHECKING:
    from finlora.training.order import Order
    from finlora.training.progress import Progress
    from finlora.training.result import Result


def main(argv: list[str]) -> int:
    """Train, validate, register. Raises FinLoRAError."""
    if _method(argv) == RESTORE:
        from finlora.training.restoration.cli import main as restore

        return restore(argv)
    options = parser()
    args = options.parse_args(argv)
    if args.list:
        return _list(args.config, as_json=args.json)
    if args.name is None:
        options.error("which configuration? `--list` shows them")
    config = load_config(args.name, args.config, _overrides(args))
    return _run(args, config)


def entry() -> int:
    """The `finlora-train` program."""
    quiet_libraries()
    return run_command("finlora-train", lambda: main(sys.argv[1:]), debug=debug_wanted())


def _method(argv: list[str]) -> str:
    """What is to be learned decides which options there are."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default=ANSWERS)
    method: str = parser.parse_known_args(argv)[0].method
    return method


def parser() -> Parser:
    """The options of `finlora train`."""
    parser = Parser(prog="finlora train", description="Train a LoRA adapter on a quantised base.")
    add = parser.add_argument
    add("name", nargs="?", help="a configuration; the adapter gets this name")
    add(
        "--method",
        choices=(ANSWERS, RESTORE),
        default=ANSWERS,
        help="restore: bring the base back to 16 bits, without labels; it has options of its own",
    )
    add("--list", action="store_true", help="show the configurations")
    add("--json", action="store_true", help="with --list: machine-readable output")
    add("--config", type=Path, default=SHIPPED_CONFIGS, help="JSON or YAML file of configurations")
    add("--base-model", help="embedded base, local folder or hub id")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    add("--seed", type=int, help="start of everything random")
    add("--device", help="cpu, cuda, cuda:N or auto")
    add("--threads", type=int, help="CPU threads; 0: physical cores")
    add("--registry", type=Path, help="folder of the adapter registry")
    add("--output", type=Path, help="also write the adapter into this folder")
    add("--min-accuracy", type=_share, help="serve it only from this accuracy on (0 to 1)")
    add(
        "--when-unsure",
        choices=("keep", "promote"),
        default="keep",
        help="the version in service when too few rows can tell which is better (default: keep)",
    )
    add("--no-register", action="store_true", help="leave the registry alone (needs --output)")
    add("--resume", action="store_true", help="go on from the last checkpoint that is sound")
    add("--checkpoints", type=Path, help="where they are kept (default: in the cache folder)")
    add("--log", type=Path, help="JSON lines of the run (default: in the cache folder)")
    add("--report-to", action="append", default=[], choices=TRACKERS, help="also report there")
    add("--plain", action="store_true", help="lines instead of the live display")
    add("--dry-run", action="store_true", help="show what would be done")
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return share


def _list(file: Path, *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(read_configs(file), indent=1, default=str) + "\n")
        return 0
    for name, fields in read_configs(file).items():
        sys.stdout.write(f"{name:32} {fields.get('description', '')}\n")
    return 0


def _overrides(args: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set wants KEY=VALUE, not {setting!r}")
        overrides[key] = value
    if args.base_model is not None:
        overrides["base_model"] = json.dumps(args.base_model)
    if args.seed is not None:
        overrides["seed"] = str(args.seed)
    return overrides


def _command(args: argparse.Namespace) -> str:
    """What makes this adapter again; where it is put is left out."""
    words = ["finlora-train", args.name]
    if args.config != SHIPPED_CONFIGS:
        words += ["--config", args.config.name]
    if args.base_model is not None:
        words += ["--base-model", args.base_model]
    for setting in args.set:
        words += ["--set", setting]
    if args.seed is not None:
        words += ["--seed", str(args.seed)]
    return shlex.join(words)


def _run(args: argparse.Namespace, config: TrainingConfig) -> int:
    # Imported here: they bring torch, which --help, --list and a mistyped name do not need.
    from finlora.training.checkpoint import clear_checkpoints
    from finlora.training.description import describe
    from finlora.training.run import RunStoppedError, run

    if args.no_register and args.output is None and not args.dry_run:
        raise ConfigError("--no-register without --output would train for nothing")
    order = _order(args, config)
    if args.dry_run:
        sys.stdout.write(json.dumps(describe(order), indent=1, default=str) + "\n")
        return 0
    progress = _progress(args, config)
    try:
        result = run(order, progress)
        if result is None:
            return 0
        _keep(order, result, progress)
    except RunStoppedError as stopped:
        progress.phase(str(stopped))
        return 0
    finally:
        progress.close()
    clear_checkpoints(order.checkpoints)
    return 0


def _order(args: argparse.Namespace, config: TrainingConfig) -> "Order":
    from finlora.training.gate import GateRules
    from finlora.training.order import Order

    settings = load_settings(registry=args.registry, device=args.device, threads=args.threads)
    return Order(
        name=args.name,
        config=config,
        folder=Path() if args.config == SHIPPED_CONFIGS else args.config.parent,
        device=settings.device,
        threads=settings.threads,
        registry=open_registry(settings),
        command=_command(args),
        checkpoints=(args.checkpoints or cache_folder() / "training") / args.name,
        output=args.output,
        registered=not args.no_register,
        resume=args.resume,
        rules=GateRules(args.min_accuracy, args.when_unsure),
        stopped=_stop_signal().is_set,
    )


def _progress(args: argparse.Namespace, config: TrainingConfig) -> "Progress":
    from finlora.training.display import PlainView, choose_view
    from finlora.training.event_log import EventLog
    from finlora.training.progress import Progress
    from finlora.training.team import is_leader
    from finlora.training.trackers import open_tracker

    if not is_leader():
        return Progress(PlainView(lambda _: None))
    file = args.log or cache_folder() / "training" / f"{args.name}.jsonl"
    trackers = [
        open_tracker(kind, args.name, config.model_dump(), file.parent) for kind in args.report_to
    ]
    return Progress(choose_view(plain=args.plain), EventLog(file, resume=args.resume), trackers)


def _keep(order: "Order", result: "Result", progress: "Progress") -> None:
    """Into the registry, and served from now on if the gate lets it."""
    if order.output is not None:
        progress.phase(f"written to {order.output}")
    if not order.registered:
        return
    adapter = result.register(order.registry, order.name, order.config.variant)
    verdict = result.verdict
    progress.phase(f"registered {adapter.reference} in {order.registry.folder}")
    if verdict.promoted:
        progress.phase(f"promoted: {verdict.reason}")
    else:
        progress.phase(f"not promoted: {verdict.reason}")
        command = f"finlora adapters rollback {order.name} --to {adapter.digest[:12]}"
        progress.phase(f"to serve it all the same: {command}")


def _stop_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C: the run saves its state and ends as it should."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        signal.signal(signal.SIGINT, lambda *_: _interrupt(stop))
    return stop


def _interrupt(stop: threading.Event) -> None:
    """Ctrl-C once: as SIGTERM; twice: at once."""
    stop.set()
    signal.signal(signal.SIGINT, signal.default_int_handler)
