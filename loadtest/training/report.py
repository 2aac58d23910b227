"""Rounds of the two loops as a Markdown table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from finlora.bench.statistics import Ratio, paired_ratio
from loadtest.training.measurement import Measurement

Rounds = Mapping[str, Sequence[Measurement]]  # "finlora", "plain" -> one for each round
LOSS_TOLERANCE = 0.01  # relative; the loops add in another order, on bf16 they also round elsewhere
TITLES = {"finlora": "finlora-train", "plain": "PEFT + transformers Trainer"}
# Of a frozen base: the forward pass, and the gradient of the activations; weights have none.
FLOPS_PER_PARAMETER = 4


def ratio(rounds: Rounds) -> Ratio:
    """Tokens a second of ours over the plain loop's, round by round."""
    ours, plain = ([m.tokens_per_second for m in rounds[key]] for key in ("finlora", "plain"))
    return paired_ratio(ours, plain)


def loss_differences(rounds: Rounds) -> dict[str, float]:
    """Largest relative difference of the steps' losses, and that of the validation losses."""
    ours, plain = rounds["finlora"][0], rounds["plain"][0]
    pairs = zip(ours.losses, plain.losses, strict=True)
    return {
        "steps": max(abs(a - b) / b for a, b in pairs),
        "validation": abs(ours.valid_loss - plain.valid_loss) / plain.valid_loss,
    }


def losses_agree(rounds: Rounds) -> bool:
    """Whether every step's and the validation rows' loss is the same within the tolerance."""
    return max(loss_differences(rounds).values()) <= LOSS_TOLERANCE


def bound_share(measured: Measurement, flops: float) -> float:
    """Of the base's linear layers alone, on the tokens that were really computed."""
    return measured.computed_per_second * FLOPS_PER_PARAMETER * measured.linear_parameters / flops


def table(rounds: Rounds) -> str:
    """Medians of the rounds, and what follows from them."""
    flops = median(m.matmul_flops for m in rounds["finlora"])
    lines = [
        "| loop | tokens/s | computed tokens/s | share of the matmul bound | peak memory "
        "| last losses | validation loss |",
        "|---|---|---|---|---|---|---|",
        *(_line(TITLES[key], measured, flops) for key, measured in rounds.items()),
    ]
    speed, apart = ratio(rounds), loss_differences(rounds)
    first = rounds["finlora"][0]
    agree = "agree" if losses_agree(rounds) else "DO NOT AGREE"
    lines += [
        "",
        f"Tokens/s: {speed.value:.2f} times the plain loop ({speed.low:.2f} to {speed.high:.2f}, "
        f"{len(rounds['plain'])} rounds). Losses {agree}: steps within {apart['steps']:.2%}, "
        f"validation within {apart['validation']:.2%} (allowed {LOSS_TOLERANCE:.0%}).",
        f"{first.dtype}, {first.num_threads} threads, matmul peak {flops / 1e9:,.0f} GFLOP/s.",
    ]
    return "\n".join(lines) + "\n"


def _line(title: str, measured: Sequence[Measurement], flops: float) -> str:
    cells = [
        title,
        f"{median(m.tokens_per_second for m in measured):,.0f}",
        f"{median(m.computed_per_second for m in measured):,.0f}",
        f"{median(bound_share(m, flops) for m in measured):.0%}",
        f"{median(m.peak_bytes for m in measured) / 1e9:.2f} GB",
        f"{measured[0].mean_loss:.4f}",
        f"{measured[0].valid_loss:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def picture(rounds: Rounds, file: Path) -> None:
    """Both loss curves, and tokens a second of every round."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    styles = {"finlora": ("-", "#1f3b63"), "plain": ("--", "#c05020")}
    for position, (key, measured) in enumerate(rounds.items()):
        style, color = styles[key]
        steps = range(1, len(measured[0].losses) + 1)
        curves.plot(steps, measured[0].losses, style, color=color, label=TITLES[key])
        speeds = [m.tokens_per_second for m in measured]
        bars.bar(position, median(speeds), color=color, alpha=0.6)
        bars.plot([position] * len(speeds), speeds, "k.")
    curves.set(xlabel="step", ylabel="loss per answer token")
    curves.legend()
    bars.set_xticks(range(len(rounds)), [TITLES[key] for key in rounds])
    bars.set_ylabel("tokens/s, every round a dot")
    figure.savefig(file, dpi=120)
