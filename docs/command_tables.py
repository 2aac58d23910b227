"""The reference of commands, from the parsers that read them."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from docs.tables import code, table
from finlora.cli import COMMANDS
from finlora.config import Settings
from finlora.failures import MEANINGS

SETTINGS_OPTIONS = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
# Groups whose options are settings: they stand in the table of settings.
SETTINGS_GROUP = "as of finlora serve"


def command_reference(name: str) -> str:
    """What a command does and its options; of its subcommands too."""
    module = RESTORE if name == "restore" else COMMANDS[name][0]
    parser: argparse.ArgumentParser = import_module(module).parser()
    return "\n\n".join(_sections(parser))


RESTORE = "finlora.training.restoration.cli"


def exit_codes() -> str:
    """Every code and what it means."""
    return table(("Code", ""), [(str(code.value), what) for code, what in MEANINGS.items()])


def _sections(parser: argparse.ArgumentParser, about: str | None = None) -> Iterator[str]:
    yield f"{code(parser.prog)}: {about or parser.description}"
    own = [action for action in _actions(parser) if not _is_setting(parser, action)]
    if own:
        yield table(("Option", "Default", ""), [_row(action) for action in own])
    num_settings = sum(_is_setting(parser, action) for action in _actions(parser))
    if num_settings:
        which = "All" if num_settings == len(Settings.model_fields) else "The engine's"
        yield f"{which} settings (see [there](#settings)) are options too."
    for child, about in _children(parser):
        yield from _sections(child, child.description or about)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [action for action in parser._actions if not isinstance(action, hidden)]


def _children(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[argparse.ArgumentParser, str | None]]:
    """Subcommands, each with what its parent says of it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help for choice in action._choices_actions}
            yield from ((child, said.get(name)) for name, child in action.choices.items())


def _is_setting(parser: argparse.ArgumentParser, action: argparse.Action) -> bool:
    if parser.prog == "finlora serve":
        return bool(SETTINGS_OPTIONS & {*action.option_strings})
    groups = (group for group in parser._action_groups if action in group._group_actions)
    return any(SETTINGS_GROUP in (group.title or "") for group in groups)


def _row(action: argparse.Action) -> tuple[str, str, str]:
    names = [f"{name} {_metavar(action)}".strip() for name in action.option_strings]
    shown = ", ".join(map(code, names)) or code(_metavar(action) or action.dest)
    default, text = _default(action), action.help or ""
    # The default has a column of its own.
    return shown, default, text.partition(" (default:")[0] if default else text


def _metavar(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    metavar = action.metavar
    if isinstance(metavar, tuple):
        return " ".join(metavar)
    if metavar is None and action.choices is not None:
        return "|".join(map(str, action.choices))
    if metavar is not None:
        return metavar
    return action.dest.upper() if action.option_strings else action.dest


def _default(action: argparse.Action) -> str:
    default = action.default
    if default is argparse.SUPPRESS or (not default and not _is_number(default)):
        return ""
    if isinstance(default, Path) and default.is_absolute():
        return "shipped"
    if isinstance(default, list | tuple):
        return code(",".join(map(str, default)))
    return code(default)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
