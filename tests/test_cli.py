"""The command line as a user meets it."""

import subprocess
import sys

import pytest

from finlora import __version__
from finlora.cli import COMMANDS, main

PROBE = """
import sys
from finlora.cli import main
code = 0
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code or 0
slow = {"torch", "transformers", "fastapi", "pydantic"} & set(sys.modules)
sys.exit(f"imported {slow}" if slow else code)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"], []])
def test_answers_without_heavy_imports(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False
    )
    assert "imported" not in done.stderr
    assert done.returncode == (0 if arguments and arguments[0].startswith("--") else 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_does_not_wait_for_torch(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"usage: finlora {command}")
    assert "torch" not in done.stderr


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finlora", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"finlora {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    assert f"finlora {command}" in capsys.readouterr().out


def test_an_error_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "no-such-base"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("finlora models: no-such-base")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["models", "no-such-action"], "finlora models: "),
        (["serv"], "did you mean 'serve'?"),
        (["quux"], "there are serve, "),
        ([], "required: command"),
        (["serve", "--port", "many"], "finlora serve: argument --port"),
        (["bench", "everything"], "no part 'everything', only prefill"),
        (["adapters", "add", "folder"], "finlora adapters add: "),
    ],
)
def test_wrong_usage_is_2_and_one_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    told = capsys.readouterr().err
    assert what in told
    assert told.count("\n") == 1
    assert "--help` shows" in told


@pytest.mark.parametrize(
    "arguments",
    [["--debug", "models", "show", "nothing"], ["models", "show", "nothing", "--debug"]],
)
def test_debug_shows_the_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FINLORA_DEBUG", "1")
    assert main(["models", "show", "nothing"]) == 1
    assert "Traceback" in capsys.readouterr().err
