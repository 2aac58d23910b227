"""From texts to answers through a runner. An error takes the place of its text's answer."""

from collections.abc import Generator, Iterable

from tokenizers import Tokenizer

from finlora.adapters.adapter import Adapter
from finlora.adapters.label_task import LabelTask
from finlora.engine.request import FinishReason, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from finlora.errors import FinLoRAError, RequestError
from finlora.offline.results import Classification, Completion, Text
from finlora.offline.runner import Job, Runner
from finlora.offline.scoring import choice_logprobs
from finlora.prompts import TextEncoder, encode_prompt


def completions(
    runner: Runner,
    tokenizer: Tokenizer,
    prompts: Iterable[Text],
    params: SamplingParams,
    adapter: Adapter | None,
) -> Generator[Completion | FinLoRAError]:
    """What follows each prompt, which is read verbatim."""

    def job(prompt: Text) -> Job | FinLoRAError:
        problem = _problem(prompt)
        return problem or Job(encode_prompt(tokenizer, str(prompt)), params, adapter)

    for output in runner.stream(map(job, prompts)):
        yield output if isinstance(output, FinLoRAError) else _completion(output)


class Classifier:
    """Gives each text one of a task's labels, with one adapter or (None) the bare base."""

    def __init__(
        self, runner: Runner, encoder: TextEncoder, task: LabelTask, adapter: Adapter | None
    ) -> None:
        """Raises RequestError: a label has no tokens, or two have the same."""
        self.task = task
        self._runner = runner
        self._encoder = encoder
        self._adapter = adapter
        self._choice = ChoiceTree([encoder.encode_target(label) for label in task.labels])

    @property
    def reference(self) -> str | None:
        """The adapter's version, name@digest; None for the base."""
        return None if self._adapter is None else self._adapter.reference

    def each(self, texts: Iterable[Text]) -> Generator[Classification | FinLoRAError]:
        """The label of each text, by exact probabilities from one pass over the prompt."""
        contexts = map(self._context, texts)
        for result in choice_logprobs(self._runner, contexts, self._choice, self._adapter):
            yield result if isinstance(result, FinLoRAError) else self._classification(result)

    def _context(self, text: Text) -> list[int] | FinLoRAError:
        return _problem(text) or self._encoder.encode_template(self.task.template, str(text))

    def _classification(self, logprobs: tuple[float, ...]) -> Classification:
        chances = self.task.probabilities(logprobs)
        likeliest = max(range(len(chances)), key=chances.__getitem__)
        labels = self.task.labels
        return Classification(labels[likeliest], dict(zip(labels, chances, strict=True)))


def _problem(text: object) -> FinLoRAError | None:
    """What keeps this from being a text; callers need not be type-checked."""
    if isinstance(text, FinLoRAError):
        return text
    if isinstance(text, str):
        return None
    return RequestError(f"not a text but {type(text).__name__}: {text!r:.80}", param="text")


def _completion(output: RequestOutput) -> Completion:
    stopped = output.finish_reason is FinishReason.STOP
    return Completion(
        text=output.text,
        token_ids=output.token_ids,
        finish_reason="stop" if stopped else "length",
        num_prompt_tokens=output.num_prompt_tokens,
    )
