"""Log-probabilities of labels and of whole answers, as the server computes them."""

import math
from collections.abc import Generator, Iterable, Sequence

from finlora.adapters.adapter import Adapter
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from finlora.errors import FinLoRAError
from finlora.offline.runner import Job, Runner

TARGET_PARAMS = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)


def choice_logprobs(
    runner: Runner,
    contexts: Iterable[list[int] | FinLoRAError],
    choice: ChoiceTree,
    adapter: Adapter | None,
) -> Generator[tuple[float, ...] | FinLoRAError]:
    """For each context, the log-probability of each label and its end token, or what went wrong.

    One pass over the context gives all of them; they are not renormalised.
    """
    params = SamplingParams.scoring(choice)
    jobs = (c if isinstance(c, FinLoRAError) else Job(c, params, adapter) for c in contexts)
    for output in runner.stream(jobs):
        yield output if isinstance(output, FinLoRAError) else output.choice_logprobs or ()


def target_logprobs(
    runner: Runner,
    contexts: Sequence[list[int]],
    targets: Sequence[list[int]],
    adapter: Adapter | None,
) -> Generator[float | FinLoRAError]:
    """Log-probability of each context's own target, its end token included if it ends in one."""
    pairs = zip(contexts, targets, strict=True)
    jobs = (Job(context + target, TARGET_PARAMS, adapter) for context, target in pairs)
    for output, target in zip(runner.stream(jobs), targets, strict=True):
        yield output if isinstance(output, FinLoRAError) else _last_logprobs(output, len(target))


def _last_logprobs(output: RequestOutput, num_tokens: int) -> float:
    entries = (output.prompt_logprobs or ())[-num_tokens:]
    return math.fsum(entry.logprob for entry in entries if entry is not None)
