"""The tables of a report, as rows of text: the same for the terminal, Markdown and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from finlora.evaluation.bootstrap import Estimate
from finlora.evaluation.findings import Finding, Findings
from finlora.evaluation.outcome import Outcome

NO_LABEL = "(none)"


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, a head, and rows of the same width; the first column is text."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Numbers to the right."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [self.head, tuple(rule), *self.rows]
        return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def scores_table(findings: Findings) -> Table:
    """One row for each test set and model."""
    scored = any("brier" in found.measures.overall for found in findings.findings)
    head = ["test set", "model", "rows", "accuracy, %", "macro F1, %", "weighted F1, %"]
    head += ["Brier", "ECE"] if scored else ["label contained, %"]
    rows = [_scores_row(found, scored=scored) for found in findings.findings]
    return Table("Scores, with 95 % intervals", tuple(head), tuple(rows))


def _scores_row(found: Finding, *, scored: bool) -> tuple[str, ...]:
    outcome, overall = found.outcome, found.measures.overall
    row = [outcome.test_set, outcome.model, str(found.measures.num_rows)]
    row += [percent(overall[name]) for name in ("accuracy", "macro_f1", "weighted_f1")]
    if scored:
        return (*row, plain(overall["brier"]), plain(overall["ece"]))
    return (*row, f"{100 * (outcome.contained or 0):.1f}")


def comparison_table(findings: Findings) -> Table:
    """Paired differences from the first model."""
    rows = [
        (
            found.test_set,
            f"{found.second} minus {found.first}",
            percent(found.differences["accuracy"], sign=True),
            percent(found.differences["macro_f1"], sign=True),
            f"{found.test.num_gained} : {found.test.num_lost}",
            f"{found.test.p_value:.2g}",
            f"{100 * found.agreement:.1f}",
        )
        for found in findings.comparisons
    ]
    head = ("test set", "models", "accuracy, points", "macro F1, points", "won : lost rows")
    return Table(
        "Paired differences, with 95 % intervals",
        (*head, "McNemar p", "same answer, %"),
        tuple(rows),
    )


def label_table(findings: Findings) -> Table:
    """Precision, recall and F1 of every label."""
    rows = [
        (
            found.outcome.test_set,
            found.outcome.model,
            label,
            str(sum(found.measures.confusion[i])),
            *(percent(parts[name]) for name in ("precision", "recall", "f1")),
        )
        for found in findings.findings
        for i, (label, parts) in enumerate(found.measures.per_label.items())
    ]
    head = ("test set", "model", "label", "rows", "precision, %", "recall, %", "F1, %")
    return Table("By label", head, tuple(rows))


def confusion_table(found: Finding) -> Table:
    """Right labels down, answers across."""
    outcome = found.outcome
    rows = [
        (label, *map(str, counts))
        for label, counts in zip(outcome.labels, found.measures.confusion, strict=True)
    ]
    return Table(
        f"{outcome.model} on {outcome.test_set}: answers (across) to rows of each label (down)",
        ("", *outcome.labels, NO_LABEL),
        tuple(rows),
    )


def speed_table(findings: Findings) -> Table:
    """Throughput and latency."""
    rows = [_speed_row(found.outcome, found) for found in findings.findings]
    head = ("test set", "model", "rows/s", "tokens/s", "p50 latency, s", "p95 latency, s")
    caption = f"Speed, with up to {findings.concurrency} rows at a time"
    return Table(caption, head, tuple(rows))


def _speed_row(outcome: Outcome, found: Finding) -> tuple[str, ...]:
    return (
        outcome.test_set,
        outcome.model,
        f"{found.speed.rows_per_second:.1f}",
        f"{found.speed.tokens_per_second:.0f}",
        plain(found.speed.latency_p50_seconds),
        plain(found.speed.latency_p95_seconds),
    )


def all_tables(findings: Findings) -> Sequence[Table]:
    """All that a report shows, in order."""
    compared = [comparison_table(findings)] if findings.comparisons else []
    confusions = [confusion_table(found) for found in findings.findings]
    return [
        scores_table(findings),
        *compared,
        label_table(findings),
        *confusions,
        speed_table(findings),
    ]


def percent(estimate: Estimate, *, sign: bool = False) -> str:
    """`83.1 (81.5 to 84.6)`."""
    form = "+.1f" if sign else ".1f"
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def plain(estimate: Estimate) -> str:
    """`0.231 (0.214 to 0.250)`."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
