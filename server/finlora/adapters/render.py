"""How adapters are shown: facts for JSON, tables for people."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from finlora.adapters.adapter import WEIGHTS_FILE, Adapter
from finlora.adapters.registry import AdapterRegistry

NARROW_COLUMNS = 200  # where there is no terminal, so that no cell is cut in a pipe


def adapter_facts(adapter: Adapter, aliases: dict[str, str]) -> dict[str, Any]:
    """What `list --json` says of an adapter."""
    manifest, config = adapter.manifest, adapter.config
    return {
        "name": adapter.name,
        "variant": adapter.variant,
        "digest": adapter.digest,
        "aliases": sorted(alias for alias, name in aliases.items() if name == adapter.name),
        "base": manifest.base_name,
        "base_fingerprint": manifest.base_fingerprint,
        "quantization": manifest.quantization.type,
        "method": method(adapter),
        "rank": max([config.r, *config.rank_pattern.values()]),
        "weights_bytes": (adapter.folder / WEIGHTS_FILE).stat().st_size,
        "labels": manifest.labels,
        "licence": manifest.licence,
        "created": manifest.created,
    }


def method(adapter: Adapter) -> str:
    """lora, rslora, dora or dora+rslora."""
    parts = ["dora"] * adapter.config.use_dora + ["rslora"] * adapter.config.use_rslora
    return "+".join(parts) or "lora"


def registry_facts(registry: AdapterRegistry) -> dict[str, Any]:
    """Everything `list` shows: what is served, what is broken, what was only copied in."""
    aliases = registry.aliases()
    return {
        "registry": str(registry.folder),
        "adapters": [adapter_facts(adapter, aliases) for adapter in registry.current()],
        "broken": {name: str(error) for name, error in registry.broken().items()},
        "unregistered": [str(folder) for folder in registry.unregistered()],
        "aliases": aliases,
    }


def version_facts(registry: AdapterRegistry, adapter: Adapter) -> dict[str, Any]:
    """Everything `show` knows of one version."""
    facts = adapter_facts(adapter, registry.aliases())
    return {
        **facts,
        "folder": str(adapter.folder),
        "config": adapter.config.model_dump(),
        "manifest": adapter.manifest.model_dump(exclude_none=True),
        "versions": registry.digests(adapter.name),
        "history": [asdict(c) for c in registry.log.read() if c.name == adapter.name],
    }


def write_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under headings; a missing value is a dash."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell in (None, "") else str(cell) for cell in row))
    console().print(table)


def write_line(text: str) -> None:
    """A line of text, as it is."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def console() -> Console:
    """Standard output, coloured and as wide as the terminal if it is one."""
    wide = None if sys.stdout.isatty() else NARROW_COLUMNS
    return Console(file=sys.stdout, width=wide)


def write_registry(facts: dict[str, Any]) -> None:
    """`finlora adapters list` for people."""
    rows = [
        (
            adapter["name"],
            adapter["variant"],
            adapter["digest"][:12],
            adapter["base"] or "unknown",
            adapter["quantization"],
            adapter["method"],
            adapter["rank"],
            f"{adapter['weights_bytes'] / 1e6:.1f} MB",
            ", ".join(adapter["aliases"]),
        )
        for adapter in facts["adapters"]
    ]
    columns = ("NAME", "VARIANT", "DIGEST", "BASE", "TRAINED ON", "METHOD", "RANK", "SIZE", "ALIAS")
    if rows:
        write_table(columns, rows)
    else:
        write_line(f"no adapters in {facts['registry']}")
    for name, reason in facts["broken"].items():
        write_line(f"broken: {name}: {reason}")
    for folder in facts["unregistered"]:
        name, variant = folder.rsplit("/", 2)[:0:-1]
        write_line(
            f"not served: {folder} is a plain PEFT folder; add it with\n"
            f"  finlora adapters add {folder} --name {name} --variant {variant}"
        )


def write_version(facts: dict[str, Any]) -> None:
    """`finlora adapters show` for people."""
    manifest = facts["manifest"]
    shown = {
        key: facts[key]
        for key in ("name", "variant", "digest", "folder", "base", "method", "rank", "created")
    }
    shown |= {
        "quantization": _compact(manifest["quantization"]),
        "aliases": ", ".join(facts["aliases"]),
        **{
            key: _compact(manifest.get(key))
            for key in ("base_fingerprint", "labels", "prompt_template", "licence", "scores")
        },
    }
    write_table(("FACT", "VALUE"), list(shown.items()))
    write_line("")
    rows = [
        (change["time"], change["action"], (change["digest"] or "")[:12], change["who"])
        for change in facts["history"]
    ]
    write_table(("TIME", "CHANGE", "DIGEST", "WHO"), rows)


def _compact(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
