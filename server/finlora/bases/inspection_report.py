"""Shows what a base's storage costs in accuracy of its weights and in memory."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from finlora.bases.inspection import LayerErrors, ScaleCost, mean_errors

MIB = 1024 * 1024
STORAGES = {"none": "16 bits", "int8": "8 bits", "nf4": "4 bits (NF4)"}


def as_json(
    layers: list[LayerErrors], scales: ScaleCost, memory: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Everything."""
    return {
        "relative_error": mean_errors(layers),
        "layers": [
            {"name": layer.name, **asdict(layer.shape), "relative_error": layer.relative}
            for layer in layers
        ],
        "scale_bits_per_weight": asdict(scales),
        "memory_bytes": memory,
    }


def tables(
    layers: list[LayerErrors], scales: ScaleCost, memory: dict[str, dict[str, int]]
) -> list[Table]:
    """Errors of each layer, bits of the scales, memory of the whole model."""
    return [_error_table(layers), _scale_table(scales), _memory_table(memory)]


def _error_table(layers: list[LayerErrors]) -> Table:
    table = _table(
        "Error of the weights, % of their norm", "LAYER", "OUT x IN", "NF4", "FP4", "INT8"
    )
    for layer in layers:
        size = f"{layer.shape.out_features} x {layer.shape.in_features}"
        table.add_row(layer.name, size, *_percents(layer.relative))
    table.add_row("all layers", "", *_percents(mean_errors(layers)), style="bold")
    return table


def _scale_table(scales: ScaleCost) -> Table:
    table = _table("Bits a weight in four bits", "SCALES", "SCALES' BITS", "WITH THE WEIGHT'S")
    rows = {
        "plain: float32 a block": scales.plain,
        "double quantisation: on disk, on CUDA": scales.double,
        "packed CPU format: bfloat16 a block": scales.packed,
    }
    for what, bits in rows.items():
        table.add_row(what, f"{bits:.3f}", f"{4 + bits:.3f}")
    return table


def _memory_table(memory: dict[str, dict[str, int]]) -> Table:
    table = _table(
        "Memory of the model as loaded, MiB",
        "STORAGE", "LINEAR LAYERS", "SCALES", "EMBEDDINGS", "OTHER", "ALL", "LINEAR, % OF 16 BITS",
    )  # fmt: skip
    whole = _linear(memory["none"])
    for kind, parts in memory.items():
        sizes = [parts["linear"], parts["scales"], parts["embeddings"], parts["other"]]
        cells = (f"{size / MIB:.1f}" for size in (*sizes, sum(sizes)))
        table.add_row(STORAGES[kind], *cells, f"{100 * _linear(parts) / whole:.1f}")
    return table


def _linear(parts: dict[str, int]) -> int:
    return parts["linear"] + parts["scales"]


def _table(title: str, *head: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
    return table


def _percents(errors: dict[str, float]) -> list[str]:
    return [f"{100 * errors[kind]:.2f}" for kind in ("nf4", "fp4", "int8")]
