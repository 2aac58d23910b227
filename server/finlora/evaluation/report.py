"""A report in Markdown, HTML (one file, charts inside), PNG and JSON."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

from finlora.evaluation.answers import GENERATED_TOKENS, Mode
from finlora.evaluation.bootstrap import NUM_RESAMPLES
from finlora.evaluation.figure import chart
from finlora.evaluation.findings import Findings
from finlora.evaluation.tables import Table, all_tables

TITLE = "Evaluation"
HOW = {
    Mode.SCORE: "Exact probabilities of all labels, from one pass over each prompt; the likeliest "
    "is the answer.",
    Mode.GENERATE: f"FinLoRA's protocol: {GENERATED_TOKENS} tokens, greedy; the first label in "
    "them is the answer. FinLoRA itself counts a row as right when its label stands anywhere in "
    "the text: `label contained`.",
}
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: right; }
th { border-bottom-color: #888; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.scroll { overflow-x: auto; }
.note { border-left: 4px solid #c80; padding-left: .8rem; }
figure { margin: 0; background: #fff; padding: .5rem; }
figure svg { max-width: 100%; height: auto; }
"""


def write_report(findings: Findings, folder: Path) -> list[Path]:
    """Write all files into a folder that is there; what was written."""
    files = {
        "results.json": json.dumps(findings.as_dict(), indent=1) + "\n",
        "predictions.jsonl": "".join(json.dumps(row) + "\n" for row in findings.predictions()),
        "report.md": markdown(findings),
        "report.html": html(findings),
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    written = [folder / name for name in files]
    picture = chart(findings, "png")
    if picture is not None:
        (folder / "report.png").write_bytes(picture)
        written.append(folder / "report.png")
    return written


def markdown(findings: Findings) -> str:
    """The report as text."""
    parts = [f"# {TITLE}", *_facts(findings)]
    parts += [f"> {note}" for note in _notes(findings)]
    for table in all_tables(findings):
        parts += [f"## {table.caption}", table.markdown()]
    return "\n\n".join(parts) + "\n"


def html(findings: Findings) -> str:
    """The report as one page that needs nothing else."""
    svg = chart(findings, "svg")
    picture = "" if svg is None else f"<figure>{_inline(svg.decode())}</figure>"
    tables = "".join(map(_html_table, all_tables(findings)))
    facts = "".join(f"<p>{escape(fact)}</p>" for fact in _facts(findings))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(findings))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head><body>"
        f"<h1>{TITLE}</h1>{facts}{notes}{picture}{tables}</body></html>\n"
    )


def _facts(findings: Findings) -> Iterator[str]:
    subject = ", ".join(f"{name}: {value}" for name, value in findings.subject.items())
    yield f"{subject}. {findings.created}."
    yield HOW[findings.mode]
    yield (
        f"Intervals: percentiles of {NUM_RESAMPLES} bootstrap resamples of the rows. Differences "
        "are paired: both models are resampled by the same rows."
    )


def _notes(findings: Findings) -> Iterator[str]:
    for test_set in findings.test_sets:
        yield from (f"{test_set.name}: {note}" for note in test_set.notes)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f"<h2>{escape(table.caption)}</h2>"
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _inline(svg: str) -> str:
    """Without the lines that only a file of its own has."""
    return svg[svg.index("<svg") :]
