"""`finlora doctor`: what this machine is, which kernels will be used, and what to change."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from finlora.bases.state import base_state
from finlora.config import Settings, load_settings
from finlora.doctor.findings import Finding, Level, lines, note, problem
from finlora.doctor.libraries import check_kernels_package, check_libraries
from finlora.doctor.machine import Processor, check_allocator, check_memory, check_processor
from finlora.doctor.storage import check_base, check_cache, check_registry
from finlora.errors import FinLoRAError
from finlora.failures import ExitCode
from finlora.flags import add_settings_flags
from finlora.usage import Parser

REINSTALL = "install finlora with its dependencies again"


def main(argv: list[str]) -> int:
    """Check and tell. 1: there is a problem. Raises ConfigError."""
    args = vars(parser().parse_args(argv))
    as_json = args.pop("json")
    settings = load_settings(**args)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            sys.stdout.writelines(f"{line}\n" for line in lines([finding]))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    failed = any(finding.level is Level.PROBLEM for finding in findings)
    return ExitCode.FAILED if failed else ExitCode.DONE


def parser() -> Parser:
    """The options of `finlora doctor`."""
    parser = Parser(
        prog="finlora doctor",
        description="Tell what this machine is, and how `finlora serve` with the same settings "
        "would run on it, without loading the base. Exit code 1: something does not work.",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    add_settings_flags(parser.add_argument_group("settings, as of finlora serve"))
    return parser


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, the quick ones first."""
    base = base_state(settings.model)
    yield from check_processor(Processor.read())
    yield from check_memory(settings)
    yield from check_allocator()
    yield from check_libraries()
    yield from check_cache()
    yield from check_base(settings.model, base, settings)
    yield from check_registry(settings, base)
    forbidden = list(check_kernels_package())
    yield from forbidden
    if forbidden:
        yield note("kernels", "not looked at: that would import bitsandbytes")
        return

    def computing() -> Iterator[Finding]:
        from finlora.doctor.computing import check_computing

        return check_computing(settings, base.spec)

    yield from _survived(computing)


def _survived(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings, or what an installation that is broken makes of them."""
    try:
        yield from check()
    except FinLoRAError:
        raise
    except Exception as error:
        yield problem("libraries", f"{type(error).__name__}: {error}", REINSTALL)
