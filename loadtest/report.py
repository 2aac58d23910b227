"""A test's report as a table for people and as JSON for programs."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from finlora.bench.machine import machine_facts
from loadtest.records import to_json
from loadtest.samples import Recorder, Row
from loadtest.server_counts import ServerGrowth
from loadtest.session import Report

HEADER = ("what", "of", "count", "errors", "per s", "p50 ms", "p95 ms", "p99 ms", "max ms")
SAMPLES, FIGURES, SUMMARY = "samples.csv", "figures.csv", "summary.json"
MAX_ERROR_LINES = 10
# From here on the client is a load that the figures should be read with.
NOTABLE_CLIENT_SHARE = 0.2


def table(report: Report) -> str:
    """Everything a person wants to know, in lines of text."""
    return "\n".join(
        [*_columns([HEADER, *map(_cells, report.rows)]), "", *_facts(report), *_verdict(report), ""]
    )


def write(report: Report, recorder: Recorder, folder: Path) -> None:
    """Put every sample, the table and the whole report into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder.write_csv(folder / SAMPLES)
    with (folder / FIGURES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Row))
        writer.writerows(astuple(row) for row in report.rows)
    (folder / SUMMARY).write_text(to_json(_record(report), indent=1), "utf-8")


def _record(report: Report) -> dict[str, Any]:
    """Every figure, the machine's facts with them."""
    record = {"machine": machine_facts(), **asdict(report)}
    record["client"] |= {
        "cores": report.client.cores,
        "machine_share": report.client.machine_share,
    }
    if report.server is not None:
        record["server"]["hit_rate"] = report.server.hit_rate
    return record


def _cells(row: Row) -> tuple[str, ...]:
    times = (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
    shown = ("-" if value != value else f"{value:.1f}" for value in times)
    return row.kind, row.name, str(row.count), str(row.errors), f"{row.per_second:.2f}", *shown


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        words = (cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        figures = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        yield "  ".join([*words, *figures])


def _facts(report: Report) -> Iterator[str]:
    seen, client = report.totals, report.client
    yield (
        f"{seen.requests} requests in {report.seconds:.1f} s, "
        f"{seen.requests_per_second:.2f} good answers/s, {seen.error_share:.2%} failed"
    )
    if report.server is not None:
        yield from _server_facts(report, report.server)
    yield (
        f"client: {client.cores:.2f} cores, {client.machine_share:.1%} of the "
        f"{client.num_cpus} that it shares with the server"
    )
    if client.machine_share > NOTABLE_CLIENT_SHARE:
        yield "        so much that the server would be faster without it"


def _server_facts(report: Report, server: ServerGrowth) -> Iterator[str]:
    hit = "none" if server.hit_rate is None else f"{server.hit_rate:.1%}"
    yield f"prefix cache: {hit} of {server.prompt_tokens} prompt tokens (--seed {report.seed})"
    yield (
        f"adapters: {len(report.models)} asked for, {server.loads_into_ram} read from disk, "
        f"{server.loads_into_slots} into slots, {server.evictions_from_slots} out of slots, "
        f"{server.load_failures} loads failed"
    )
    yield (
        f"server: {server.cpu_seconds / report.seconds:.2f} cores, "
        f"{server.resident_bytes_before / 2**20:.0f} MiB resident before, "
        f"{server.resident_bytes_after / 2**20:.0f} after"
    )


def _verdict(report: Report) -> Iterator[str]:
    if report.server_gone is not None:
        yield f"THE SERVER WAS GONE at the end: {report.server_gone}"
    errors = list(report.errors.items())
    yield from (f"failed {count} times: {what}" for what, count in errors[:MAX_ERROR_LINES])
    yield from (f"LIMIT MISSED: {line}" for line in report.missed)
    if not report.missed and report.server_gone is None:
        yield "all limits held"
