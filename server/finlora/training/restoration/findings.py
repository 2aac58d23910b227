"""What a restoration achieved, as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finlora.training.restoration.fidelity import Fidelity

NF4 = "NF4"


@dataclass(frozen=True, slots=True)
class RestorationFindings:
    """On held-out text. Variants besides the original and NF4 are adapters on NF4."""

    facts: dict[str, Any]  # model, text, steps: what was done
    fidelities: Mapping[str, Fidelity]

    def share_closed(self, variant: str) -> float:
        """Of the divergence that NF4 has; 1 would be the original's distribution."""
        return 1 - self.fidelities[variant].kl / self.fidelities[NF4].kl

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        variants = {
            name: {**found.as_dict(), "share_closed": round(self.share_closed(name), 4)}
            for name, found in self.fidelities.items()
        }
        return {**self.facts, "variants": variants}

    def markdown(self) -> str:
        """One row for each variant."""
        rows = [
            f"| {name} | {found.perplexity:.3f} | {found.kl:.4f} | "
            f"{100 * self.share_closed(name):.0f} % | {100 * found.agreement:.1f} % |"
            for name, found in self.fidelities.items()
        ]
        return "\n".join([_HEAD, "|---|---:|---:|---:|---:|", *rows]) + "\n"


_HEAD = (
    "| held-out text | perplexity | KL from 16 bits, nats/token | KL gap closed | same top token |"
)


def closed_form_name(rank: int) -> str:
    """Of the adapter that no step has trained."""
    return f"NF4 + closed form, r {rank}"


def restored_name(rank: int) -> str:
    """Of the adapter that was trained from there."""
    return f"NF4 + restore, r {rank}"
