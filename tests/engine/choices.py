"""Labels to choose from, and requests that choose, for the tests of choices."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from finlora.adapters.adapter import Adapter
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from tests.engine.conftest import World
from tests.engine.harness import EngineUnderTest
from tests.engine.test_parity import prompts

END = 2  # of the tiny bases
# Labels that begin alike, one that begins two others, and one of a single token.
LABELS = [[40, 41], [40], [17, 18, 19], [40, 41, 7, 8], [300], [17, 20]]
TREE = ChoiceTree(LABELS)
APART = ChoiceTree([[40, 41, 42], [17, 18], [300]])
GREEDY = SamplingParams(temperature=0, max_tokens=TREE.max_tokens, choice=TREE)
SCORED = replace(GREEDY, logprobs=0)
DRAWN = replace(
    GREEDY,
    temperature=3.0,
    repetition_penalty=1.3,
    presence_penalty=0.5,
    logit_bias={41: 2.0, 300: -1.0, END: 1.0},
)

Rows = list[tuple[list[int], Adapter | None]]


def mixed_rows(world: World) -> Rows:
    adapters = [None, *world.adapters.values(), world.adapters["lora"]]
    return list(zip(prompts(len(adapters)), adapters, strict=True))


def run(engine: EngineUnderTest, rows: Rows, params: SamplingParams) -> list[RequestOutput]:
    ids = [engine.add(prompt, adapter, params) for prompt, adapter in rows]
    outputs = engine.finish()
    return [outputs[i] for i in ids]


def label_logprobs(output: RequestOutput) -> list[float]:
    assert output.choice_logprobs is not None
    return list(output.choice_logprobs)


def assert_scored_alike(
    outputs: Sequence[RequestOutput], expected: Sequence[RequestOutput]
) -> None:
    for output, other in zip(outputs, expected, strict=True):
        assert output.token_ids == other.token_ids
        assert label_logprobs(output) == pytest.approx(label_logprobs(other), abs=1e-4)
