"""Answers out of a tree of labels: one token and what it forces, or all labels scored at once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from finlora.engine.batch import ScheduledSequence
from finlora.engine.constraints import Constraint
from finlora.engine.request import Request, TokenLogprob
from finlora.engine.sampler import Sampled, Sampler, choose
from finlora.engine.structured import END, ChoiceTree, NodeScores
from finlora.errors import InvalidSamplingParamsError

Answer = tuple[Request, list[Sampled]]


def next_tokens(
    sampler: Sampler, logits: Tensor, sequences: Sequence[ScheduledSequence]
) -> list[Answer]:
    """What a step adds to its requests, by the logits [len(sequences), vocabulary].

    A request whose labels are scored gets its whole answer once the last score is there.
    """
    scored = [i for i, s in enumerate(sequences) if s.request.params.scores_choice]
    if not scored:
        return _sample(sampler, logits, [s.request for s in sequences])
    plain = [i for i, s in enumerate(sequences) if not s.request.params.scores_choice]
    answers = _sample(sampler, logits[plain], [sequences[i].request for i in plain])
    _score(logits[scored], [sequences[i] for i in scored])
    requests = dict.fromkeys(sequences[i].request for i in scored)
    return answers + [(r, _answer(r)) for r in requests if len(r.choice_scores) > r.num_branches]


def begin_choice(request: Request, choice: ChoiceTree, vocab_size: int) -> None:
    """Prepare a request that was just made. Raises InvalidSamplingParamsError."""
    if request.end_token_id is None:
        raise _invalid("the base names no end-of-sequence token: an answer could not end")
    if not all(0 <= token_id < vocab_size for label in choice.labels for token_id in label):
        raise _invalid(f"token ids must be from 0 to {vocab_size - 1}")
    if any(not request.eos_token_ids.isdisjoint(label) for label in choice.labels):
        raise _invalid("a label has an end-of-sequence token inside")
    if request.params.scores_choice:
        return
    # What every answer begins with needs no step: it runs together with the prompt.
    for token_id in choice.forced(0):
        if token_id != END:
            request.append(token_id, None)
            request.detokenizer.append(token_id)


def _invalid(what: str) -> InvalidSamplingParamsError:
    return InvalidSamplingParamsError(f"choice: {what}", param="choice")


def _sample(sampler: Sampler, logits: Tensor, requests: Sequence[Request]) -> list[Answer]:
    sampled = sampler.sample(logits, requests)
    return [
        (request, [token, *_forced(request, token)])
        for request, token in zip(requests, sampled, strict=True)
    ]


def _forced(request: Request, token: Sampled) -> list[Sampled]:
    """The tokens that the answer cannot but go on with."""
    choice = request.params.choice
    if token.token_id is None or token.token_id in request.eos_token_ids:
        return []
    if request.constraint is not None:
        return _forced_by_grammar(request, request.constraint, token.token_id)
    if choice is None:
        return []
    node = choice.node_after([*request.output_token_ids, token.token_id])
    ends = {END: request.end_token_id}
    return [Sampled(ends.get(token_id, token_id)) for token_id in choice.forced(node)]


def _forced_by_grammar(request: Request, constraint: Constraint, token_id: int) -> list[Sampled]:
    try:
        constraint.consume(token_id)
        # Tokens that take no step have no log-probability to show.
        free = request.params.logprobs is not None
        return [] if free else [Sampled(forced) for forced in constraint.forced()]
    except InvalidSamplingParamsError as error:
        return [Sampled(None, error=error)]


def _score(logits: Tensor, sequences: Sequence[ScheduledSequence]) -> None:
    """Note what the model says at each of the tree's nodes."""
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    allowed = [s.request.allowed_token_ids(s.node) for s in sequences]
    counts = list(map(len, allowed))
    rows = torch.repeat_interleave(torch.tensor(counts)).to(logits.device)
    ids = torch.tensor([token_id for token_ids in allowed for token_id in token_ids])
    at = (rows, ids.to(logits.device))
    values = zip(logits[at].cpu().split(counts), logprobs[at].cpu().split(counts), strict=True)
    num_top = max(s.request.params.logprobs or 0 for s in sequences)
    top = logprobs.topk(num_top, dim=-1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    for sequence, (own, own_logprobs), (top_ids, top_values) in zip(
        sequences, values, pairs, strict=True
    ):
        likeliest = zip(top_ids, top_values, strict=True)
        sequence.request.choice_scores[sequence.node] = NodeScores(
            tuple(own.tolist()),
            tuple(own_logprobs.tolist()),
            tuple(likeliest)[: sequence.request.params.logprobs],
        )


def _answer(request: Request) -> list[Sampled]:
    """The whole answer, token by token as if each had been run for; all scores are there."""
    choice = request.params.choice
    assert choice is not None
    # A row of logits with NaN or +inf has NaN everywhere as log-probabilities.
    if any(math.isnan(scores.logprobs[0]) for scores in request.choice_scores.values()):
        return [Sampled(None)]
    likeliest = _likeliest(request, choice) if request.params.takes_likeliest_label else None
    answer: list[Sampled] = []
    node, token_ids = 0, list[int]()
    while node != END:
        scores, allowed = request.choice_scores[node], request.allowed_token_ids(node)
        if likeliest is None:
            index = choose(torch.tensor(scores.logits), allowed, request, token_ids)
        else:
            index = choice.allowed(node).index(likeliest[len(token_ids)])
        token_ids.append(allowed[index])
        logprob = TokenLogprob(allowed[index], scores.logprobs[index], scores.top)
        answer.append(Sampled(allowed[index], logprob))
        node = choice.child(node, choice.allowed(node)[index])
    return answer


def _likeliest(request: Request, choice: ChoiceTree) -> list[int]:
    """The tokens of the label with the highest probability, and what marks its end."""
    scores = [request.choice_scores[node] for node in range(choice.num_branches + 1)]
    logprobs = choice.label_logprobs(scores)
    return [*choice.labels[logprobs.index(max(logprobs))], END]
