"""Starts the server, puts locust's load on it, draws what was seen, stops the server.

What is not listed here goes to locust: its own options, those of the load (LOADTEST_* variables
too), and the names of the users to take. `make loadtest ARGS=--load-help` lists them.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.mixes import Mix
from loadtest.peers.process import ServerFailedError
from loadtest.picture import draw
from loadtest.plan import PREFIX
from loadtest.report import SAMPLES
from loadtest.subject import Running, add_subject_options, end_in_order, served, subject_of

OUTPUT = Path("build/loadtest")
LOCUSTFILE = "loadtest/locustfile.py"
CANNOT_RUN = 2
# What the mix needs where --adapters does not say: more than the 16 slots of the server's default.
STORM_ADAPTERS = 24
NUM_BROKEN = 3


def main(argv: list[str] | None = None) -> int:
    """Locust's exit code: 1 when a limit was missed; 2 when the test could not be run."""
    options, passed_on = _parser().parse_known_args(argv)
    if options.load_help:
        return subprocess.run(_locust(["--help"]), check=False).returncode
    output: Path = options.output or OUTPUT / time.strftime("%Y%m%d-%H%M%S")
    output.mkdir(parents=True, exist_ok=True)
    subject = subject_of(
        options,
        adapters=STORM_ADAPTERS if options.mix is Mix.SWAP_STORM else 8,
        num_broken=NUM_BROKEN if options.mix is Mix.BAD_ADAPTERS else 0,
    )
    try:
        with served(subject, output) as running:
            _say(f"{running.api.address} is ready; results go to {output}")
            return _load(running, options, passed_on, output)
    except (LoadTestError, ServerFailedError) as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_RUN


def _load(
    running: Running, options: argparse.Namespace, passed_on: Sequence[str], output: Path
) -> int:
    arguments = ["--host", running.api.address, "--mix", options.mix, "--output", str(output)]
    arguments += ["--html", str(output / "report.html"), "--loglevel", "WARNING"]
    if options.allow_remote:
        arguments += ["--allow-remote", "1"]
    if running.broken:
        arguments += ["--broken-adapters", ",".join(running.broken)]
    if options.ui:
        _say(f"open http://127.0.0.1:{options.ui_port}")
        arguments += ["--web-host", "127.0.0.1", "--web-port", str(options.ui_port)]
    else:
        # With a JSON file locust prints no table of its own, whose total mixes tokens and requests.
        arguments += ["--headless", "--only-summary", "--json-file", str(output / "locust")]
    code = _wait(_locust([*arguments, *passed_on]))
    if (output / SAMPLES).exists():
        _say(f"{draw(output)}")
    return code


def _locust(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", LOCUSTFILE, *arguments]


def _wait(command: Sequence[str]) -> int:
    """Run to the end; Ctrl-C reaches locust by itself, which then reports what it has."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
            except SystemExit:
                process.terminate()
                raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make loadtest ARGS=",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    mix = os.environ.get(f"{PREFIX}MIX", Mix.UNIFORM)
    add("--mix", type=Mix, choices=list(Mix), default=mix, help="how adapters are mixed")
    add("--ui", action="store_true", help="locust's web interface instead of a run at once")
    add("--ui-port", type=int, default=8089)
    add("--output", type=Path, help="folder for the results (default: a new one in build/)")
    add("--load-help", action="store_true", help="list locust's options and those of the load")
    add_subject_options(parser)
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
