"""The results of `finlora bench` as one readable table."""

from collections.abc import Iterator

from rich.table import Table

from finlora.bench.parts import Decode, Memory, Mixed, Prefill
from finlora.bench.roofline import Rates
from finlora.bench.run import Results
from finlora.bench.swap import Swap

Row = tuple[str, str, str]


def table(results: Results) -> Table:
    """Every figure with what it is a share of."""
    shown = Table("WHAT", "FIGURE", "BESIDE", box=None, pad_edge=False)
    for rows in _sections(results):
        for row in rows:
            shown.add_row(*row)
        shown.add_section()
    return shown


def _sections(results: Results) -> Iterator[Iterator[Row]]:
    yield _machine(results.rates)
    yield (_prefill(row) for row in results.prefill)
    yield (_decode(row) for row in results.decode)
    yield (_mixed(row) for row in results.mixed)
    yield (_swap(row) for row in results.swap)
    if results.memory is not None:
        yield _memory(results.memory)


def _machine(rates: Rates) -> Iterator[Row]:
    threads = f"{rates.num_threads} threads"
    yield f"{rates.dtype} matmul peak", f"{rates.matmul / 1e9:,.0f} GFLOP/s", threads
    yield (
        f"  the model's shapes, {rates.rows} rows",
        f"{rates.matmul_model_shapes / 1e9:,.0f} GFLOP/s",
        f"{rates.matmul_model_shapes / rates.matmul:.0%} of the peak",
    )
    yield "memory, reading", f"{rates.read / 1e9:,.1f} GB/s", threads


def _prefill(row: Prefill) -> Row:
    return (
        f"prefill, {row.num_prompts} prompts of {row.prompt_tokens}, {_by(row.num_adapters)}",
        f"{row.tokens_per_second:,.0f} tokens/s",
        f"{row.share_of_matmul_peak:.0%} of the peak, "
        f"{row.share_of_model_shapes:.0%} of the model's shapes",
    )


def _decode(row: Decode) -> Row:
    return (
        f"decode, batch {row.batch_size}, context {row.context_tokens:.0f}, "
        f"{_by(row.num_adapters)}",
        f"{row.tokens_per_second:,.0f} tokens/s",
        f"{row.step_seconds * 1e3:.1f} ms a step: {row.share_of_bound:.0%} of the bound "
        f"({row.share_of_serial_bound:.0%} of the serial one)",
    )


def _mixed(row: Mixed) -> Row:
    return (
        f"{row.what}, {_by(row.num_adapters)} of rank {row.rank}",
        f"{row.mixed_per_second:,.1f} /s",
        f"{row.ratio.value:.1%} of base only ({row.ratio.low:.1%} to {row.ratio.high:.1%})",
    )


def _swap(row: Swap) -> Row:
    return (
        f"{row.way}, rank {row.rank}, {row.adapter_bytes / 1e6:.1f} MB",
        f"p50 {row.p50_seconds * 1e3:.2f} ms",
        f"p99 {row.p99_seconds * 1e3:.2f} ms of {row.samples}",
    )


def _memory(found: Memory) -> Iterator[Row]:
    for part, size in found.parts.items():
        yield f"memory, {part.replace('_', ' ')}", _mebibytes(size), ""
    for name in ("resident", "unique"):
        before = found.process[f"{name}_before_loading"]
        yield (
            f"memory, process, {name}",
            _mebibytes(found.process[name]),
            f"{_mebibytes(before)} before loading",
        )


def _by(num_adapters: int) -> str:
    return f"{num_adapters} adapters" if num_adapters else "base only"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
