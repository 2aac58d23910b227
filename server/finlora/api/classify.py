"""POST /v1/classify: exact probabilities of labels, from one forward pass over each text."""

from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from finlora.adapters.adapter import Adapter
from finlora.adapters.label_task import LabelTask
from finlora.api.connection import read_body
from finlora.api.encoding import check_fits, encode_inputs
from finlora.api.forms import label_tree
from finlora.api.generation import answer_at_once, head_of, usage_of
from finlora.api.protocol.classify import Classification, Classified, ClassifyRequest
from finlora.api.sequences import Candidate, run_all
from finlora.api.state import ServerState, server_state
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.prompts import PromptTemplate

router = APIRouter()


@router.post("/classify")
async def classify(request: Request) -> Response:
    """The likeliest label of each text."""
    state = server_state(request)
    body = ClassifyRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    adapter = state.resolve(body.model)
    template = None if body.template is None else PromptTemplate(body.template)
    task = LabelTask.of(adapter, labels=body.labels, template=template)
    tree = await label_tree(state.text_encoder, task.labels, "labels")
    prompts = await encode_inputs(state, task.template, body.input)
    for i, prompt in enumerate(prompts):
        check_fits(state, prompt, max(tree.num_branches, tree.max_tokens), f"input.{i}")
    params = SamplingParams.scoring(tree, takes_likeliest_label=True)
    sequences = [Candidate(i, 0, prompt, params) for i, prompt in enumerate(prompts)]
    return await answer_at_once(request, _answer(state, body, adapter, task, sequences))


async def _answer(
    state: ServerState,
    body: ClassifyRequest,
    adapter: Adapter | None,
    task: LabelTask,
    sequences: list[Candidate],
) -> Classification:
    head = head_of(state, body.model, adapter, "classify")
    running = run_all(
        state.engine,
        sequences,
        adapter=adapter,
        request_id=head["id"],
        cache_salt=body.cache_salt,
        # A long list keeps the batches full, but leaves the queue to others.
        max_concurrent=2 * state.settings.max_num_seqs,
    )
    async with aclosing(running) as outputs:
        by_index = {index: output async for index, output in outputs}
    in_order = [by_index[index] for index in range(len(sequences))]
    data = [_classified(i, body, task, output) for i, output in enumerate(in_order)]
    return Classification(**head, data=data, usage=usage_of(by_index))


def _classified(
    index: int, body: ClassifyRequest, task: LabelTask, output: RequestOutput
) -> Classified:
    assert output.choice_logprobs is not None
    values = task.probabilities(output.choice_logprobs)
    probabilities = dict(zip(task.labels, values, strict=True))
    label = max(probabilities, key=probabilities.__getitem__)
    shown = probabilities if body.return_probabilities else None
    return Classified(index, label, probabilities[label], shown)
