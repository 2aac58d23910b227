"""Classification as a manifest describes it: labels, prompt, calibration. No tokens, no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finlora.adapters.adapter import Adapter, Manifest
from finlora.errors import RequestError
from finlora.prompts import PromptTemplate


@dataclass(frozen=True, slots=True)
class LabelTask:
    """One of `labels` for every text; what the model reads is the filled template."""

    labels: tuple[str, ...]
    template: PromptTemplate
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        adapter: Adapter | None,
        *,
        labels: Sequence[str] | None = None,
        template: PromptTemplate | None = None,
    ) -> "LabelTask":
        """The adapter's own task, or the caller's labels and template in its place.

        The calibration belongs to the adapter's own labels, in any order, and template: others
        have none.
        Raises RequestError: neither the caller nor the manifest has labels, or a template.
        """
        manifest = Manifest() if adapter is None else adapter.manifest
        chosen = manifest.labels if labels is None else list(labels)
        text = manifest.prompt_template if template is None else template.text
        model = "the base" if adapter is None else adapter.name
        if chosen is None:
            raise RequestError(f"labels: {model} has none of its own, so name them", param="labels")
        if text is None:
            raise RequestError(
                f"template: {model} has none of its own, so give one with {{input}} in it",
                param="template",
            )
        is_own = {*chosen} == {*(manifest.labels or ())} and text == manifest.prompt_template
        temperature = manifest.temperature if is_own else None
        return cls(tuple(chosen), PromptTemplate(text), temperature or 1.0)

    def probabilities(self, logprobs: Sequence[float]) -> list[float]:
        """P(label | text) for each label; they add up to 1.

        `logprobs` are of the labels' tokens and the end token, in the order of `labels`. There is
        no length normalisation: the product over a label's tokens is its probability, exactly.
        Temperature scaling: Guo et al. 2017, https://arxiv.org/abs/1706.04599.
        """
        return softmax([logprob / self.temperature for logprob in logprobs])


def softmax(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of alternatives, whatever share of all probability they have together."""
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
