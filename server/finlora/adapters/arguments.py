"""The command line of `finlora adapters`: commands, options and their help."""

import argparse
from pathlib import Path

from finlora.config import Quantization
from finlora.usage import Parser


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="finlora adapters", description="The registry of LoRA adapters: look at it, change it."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_command(commands, "list", "every adapter, and what is wrong with it")
    show = _add_command(commands, "show", "all that is known of one version")
    show.add_argument("name", help="name, alias or name@digest")
    _add_arguments(
        _add_command(commands, "add", "check a PEFT folder against the base and register it")
    )
    remove = _add_command(commands, "remove", "take a name out of service (files stay until prune)")
    remove.add_argument("name")
    verify = _add_command(commands, "verify", "check digests and weights of all stored versions")
    verify.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    _base_arguments(verify)
    alias = _add_command(commands, "alias", "let another name mean an adapter")
    alias.add_argument("alias")
    target = alias.add_mutually_exclusive_group(required=True)
    target.add_argument("name", nargs="?", help="the adapter meant")
    target.add_argument("--remove", action="store_true", help="take the alias away")
    rollback = _add_command(commands, "rollback", "let a name mean its previous version again")
    rollback.add_argument("name")
    rollback.add_argument("--to", metavar="DIGEST", help="this version; also undoes a remove")
    prune = _add_command(commands, "prune", "delete versions that are no longer needed")
    prune.add_argument(
        "--keep", type=_count, default=1, metavar="N", help="earlier versions to keep (default: 1)"
    )
    return top


def _add_command(
    commands: "argparse._SubParsersAction[Parser]",
    name: str,
    text: str,
) -> Parser:
    added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    added.add_argument(
        "--registry", type=Path, metavar="DIR", help="default: ./adapters_registry, else user data"
    )
    added.add_argument("--json", action="store_true", help="machine-readable output")
    added.set_defaults(command=name)
    return added


def _add_arguments(add: argparse.ArgumentParser) -> None:
    add.add_argument("folder", type=Path, help="adapter_config.json and adapter_model.safetensors")
    add.add_argument("--name", required=True, help="what clients send as `model`")
    add.add_argument("--variant", help="folder above the name (default: like 4bits_r4)")
    _base_arguments(add)
    add.add_argument(
        "--trained-on",
        type=Quantization,
        choices=list(Quantization),
        help="quantisation it was trained on, when the folder does not say",
    )
    add.add_argument(
        "--labels",
        type=comma_separated,
        metavar="A,B,...",
        help="the answers it gives, for classification",
    )
    add.add_argument("--template", help="prompt it was trained with, around {input}")
    add.add_argument("--licence", "--license", dest="licence", help="licence of the adapter")
    add.add_argument(
        "--strict", action="store_true", help="refuse another or unknown training quantisation"
    )


def _base_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="BASE",
        help="base to check against; with `add` also states that it was trained on this base",
    )
    command.add_argument(
        "--quantization", type=Quantization, choices=list(Quantization), help="of the served base"
    )
    command.add_argument("--max-rank", type=int, metavar="R", help="largest rank the server takes")


def comma_separated(text: str) -> list[str]:
    """`a, b,c` as a list."""
    return [label.strip() for label in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number, 0 or more")
    return int(text)
