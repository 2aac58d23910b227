"""Puts restoring adapters into the registry, with a manifest and a card that say what they are."""

import json
from datetime import UTC, datetime

from finlora.adapters.adapter import Adapter, Manifest
from finlora.model import LoadedBase
from finlora.training.manifest import trained_on
from finlora.training.restoration.findings import restored_name
from finlora.training.restoration.order import RestorationOrder
from finlora.training.restoration.restoration import Restored


def register(order: RestorationOrder, restored: Restored, base: LoadedBase) -> Adapter:
    """In service at once. Raises AdapterError."""
    rank, files = restored.rank, restored.files
    config = order.config(rank)
    facts = json.dumps(restored.findings.as_dict(), indent=1) + "\n"
    extra = {
        "README.md": _card(order, restored, base.spec.name).encode(),
        "metrics.json": facts.encode(),
    }
    return order.registry.register(
        order.adapter_name(rank),
        config.variant,
        files.config,
        files.weights,
        _manifest(order, restored, base),
        extra,
    )


def _manifest(order: RestorationOrder, restored: Restored, base: LoadedBase) -> Manifest:
    rank, findings = restored.rank, restored.findings
    return Manifest(
        base_name=base.spec.name,
        base_fingerprint=base.spec.fingerprint,
        tokenizer_hash=base.spec.tokenizer_hash,
        quantization=trained_on(base),
        task=order.config(rank).task,
        training={"method": "restore", "rank": rank, **findings.facts},
        scores=findings.fidelities[restored_name(rank)].as_dict()
        | {"share_closed": round(findings.share_closed(restored_name(rank)), 4)},
        licence=order.licence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _card(order: RestorationOrder, restored: Restored, base: str) -> str:
    rank = restored.rank
    licence = f"license: {order.licence.lower()}\n" if order.licence else ""
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\n{licence}---\n\n"
        f"# {order.adapter_name(rank)}\n\n"
        f"LoRA of rank {rank} on the NF4 base, learned without labels: it brings the base's own "
        "distribution back towards that of its 16-bit original. "
        f"`finlora serve --default-adapter {order.adapter_name(rank)}` uses it for requests that "
        f"name the base.\n\n{restored.findings.markdown()}\n"
        f"## How it was made\n\n    {order.command}\n"
    )
