"""finlora adapters: look at the registry and change it. Imports torch only to judge weights."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finlora.adapters import render
from finlora.adapters.arguments import parser
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.shipped import open_registry
from finlora.config import Settings, load_settings

if TYPE_CHECKING:
    from finlora.bases.spec import BaseSpec

Command = Callable[[argparse.Namespace, AdapterRegistry, Settings], int]


def main(argv: list[str]) -> int:
    """Run one command. Raises FinLoRAError when it cannot be done; usage errors exit with 2."""
    args = parser().parse_args(argv)
    settings = load_settings(
        registry=args.registry,
        model=getattr(args, "model", None),
        max_lora_rank=getattr(args, "max_rank", None),
        quantization=getattr(args, "quantization", None),
    )
    return COMMANDS[args.command](args, open_registry(settings), settings)


def list_adapters(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters list`."""
    facts = render.registry_facts(registry)
    (render.write_json if args.json else render.write_registry)(facts)
    return 0


def show_adapter(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters show`."""
    facts = render.version_facts(registry, registry.resolve(args.name))
    (render.write_json if args.json else render.write_version)(facts)
    return 0


def add_adapter(args: argparse.Namespace, registry: AdapterRegistry, settings: Settings) -> int:
    """`finlora adapters add`."""
    from finlora.adapters.adding import Target, add_folder

    target = Target(
        spec=_base_spec(settings),
        quantization=settings.quantization,
        max_rank=settings.max_lora_rank,
        strict=args.strict or settings.strict,
        trained_here=args.model is not None,
        trained_quantization=args.trained_on,
        labels=args.labels,
        prompt_template=args.template,
        licence=args.licence,
    )
    added = add_folder(registry, args.folder, args.name, args.variant, target)
    for warning in added.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    adapter = added.adapter
    if args.json:
        facts = render.adapter_facts(adapter, registry.aliases())
        render.write_json(facts | {"warnings": added.warnings, "num_layers": added.num_layers})
    else:
        render.write_line(
            f"added {adapter.variant}/{adapter.reference}: {render.method(adapter)}, "
            f"rank {adapter.config.r}, {added.num_layers} layers"
        )
    return 0


def remove_adapter(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters remove`."""
    registry.remove(args.name)
    return _report(args, {"removed": args.name}, f"removed {args.name}")


def verify_adapters(args: argparse.Namespace, registry: AdapterRegistry, settings: Settings) -> int:
    """`finlora adapters verify`: exit code 1 when something is broken."""
    from finlora.adapters.verifying import verify

    names = args.names or registry.names()
    verdicts = verify(
        registry,
        names,
        _base_spec(settings),
        settings.quantization,
        max_rank=settings.max_lora_rank,
    )
    if args.json:
        render.write_json([asdict(verdict) for verdict in verdicts])
    else:
        rows = [
            (
                f"{verdict.name}@{verdict.digest[:12]}",
                "served" if verdict.is_current else "",
                "BROKEN" if verdict.problem else "ok",
                verdict.problem or "; ".join(verdict.warnings),
            )
            for verdict in verdicts
        ]
        render.write_table(("VERSION", "STATE", "FILES", "REMARK"), rows)
    return 1 if any(verdict.problem for verdict in verdicts) else 0


def alias_adapter(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters alias`."""
    registry.alias(args.alias, None if args.remove else args.name)
    text = f"{args.alias} removed" if args.remove else f"{args.alias} means {args.name}"
    return _report(args, {"alias": args.alias, "name": args.name}, text)


def rollback_adapter(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters rollback`."""
    adapter = registry.promote(args.name, args.to) if args.to else registry.rollback(args.name)
    facts = {"name": adapter.name, "digest": adapter.digest}
    return _report(args, facts, f"{adapter.name} is {adapter.reference} again")


def prune_versions(args: argparse.Namespace, registry: AdapterRegistry, _: Settings) -> int:
    """`finlora adapters prune`."""
    pruned = registry.prune(args.keep)
    return _report(args, {"pruned": pruned}, f"{len(pruned)} versions deleted")


def _report(args: argparse.Namespace, facts: dict[str, Any], text: str) -> int:
    if args.json:
        render.write_json(facts)
    else:
        render.write_line(text)
    return 0


def _base_spec(settings: Settings) -> "BaseSpec":
    from finlora.bases.spec_cache import cached_spec

    known = cached_spec(settings.model)
    if known is not None:
        return known
    from finlora.model import base_spec

    return base_spec(settings.model)


COMMANDS: dict[str, Command] = {
    "list": list_adapters,
    "show": show_adapter,
    "add": add_adapter,
    "remove": remove_adapter,
    "verify": verify_adapters,
    "alias": alias_adapter,
    "rollback": rollback_adapter,
    "prune": prune_versions,
}
