"""From logits to tokens. Every row is treated on its own, so batch mates change nothing."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finlora.engine.request import Request, TokenLogprob
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import EngineError, FinLoRAError, InvalidSamplingParamsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one request; without a `token_id` the request ends.

    By the `error`, or because its logits were not finite.
    """

    token_id: int | None
    logprob: TokenLogprob | None = None
    error: FinLoRAError | None = None


class Sampler:
    """Greedy rows are taken all at once, the others one by one."""

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[Sampled]:
        """One token per row of logits [num_requests, vocabulary]."""
        best = logits.max(-1)
        # A row with a NaN has NaN as its maximum; +inf is no distribution either.
        finite = torch.isfinite(best.values).tolist()
        greedy = best.indices.tolist()
        sampled = []
        for row, request in enumerate(requests):
            if not finite[row]:
                sampled.append(Sampled(None))
            elif _is_plain(request.params):
                sampled.append(Sampled(greedy[row]))
            else:
                sampled.append(self._sample_or_fail(logits[row].float(), request))
        return sampled

    def _sample_or_fail(self, logits: Tensor, request: Request) -> Sampled:
        try:
            return self._sample_row(logits, request)
        except InvalidSamplingParamsError as error:  # of its grammar: the other rows go on
            return Sampled(None, error=error)
        except Exception:
            logger.exception("no token of request %s could be chosen", request.request_id)
            return Sampled(None, error=EngineError("the engine failed on this request"))

    def _sample_row(self, logits: Tensor, request: Request) -> Sampled:
        params = request.params
        token_id = self._choose_token(logits, request)
        if params.logprobs is None:
            return Sampled(token_id)
        # As OpenAI reports them: of the model, before temperature and penalties.
        return Sampled(token_id, token_logprobs(logits[None], [token_id], params.logprobs)[0])

    def _choose_token(self, logits: Tensor, request: Request) -> int:
        output = request.output_token_ids
        if request.constraint is not None:
            mask = torch.frombuffer(request.allowed_by_grammar(), dtype=torch.uint8)
            logits = logits.masked_fill(mask.to(logits.device) == 0, -torch.inf)
        if request.params.choice is None:
            return choose(logits, None, request, output)
        allowed = request.allowed_token_ids(request.params.choice.node_after(output))
        return allowed[choose(logits[allowed], allowed, request, output)]


def choose(
    logits: Tensor, token_ids: Sequence[int] | None, request: Request, output: Sequence[int]
) -> int:
    """The index of the logit that is taken behind the output so far.

    The logits are those of `token_ids`, or of the whole vocabulary. Truncation is among them.
    """
    params = request.params
    adjusted = _adjust(logits, _Context.of(request, output, token_ids))
    if params.greedy:
        return int(adjusted.argmax())
    return _draw(adjusted, params, uniform(request.seed, len(output)))


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Log-probability of each row's token and of its `num_top` likeliest; logits [rows, vocab]."""
    logprobs = logits.float().log_softmax(-1)
    ids = torch.tensor(token_ids, device=logits.device)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    if not num_top:
        return [TokenLogprob(*pair) for pair in zip(token_ids, chosen, strict=True)]
    top = logprobs.topk(num_top, dim=-1)
    rows = zip(token_ids, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenLogprob(token_id, logprob, tuple(zip(top_ids, top_values, strict=True)))
        for token_id, logprob, top_ids, top_values in rows
    ]


def _is_plain(params: SamplingParams) -> bool:
    plain = params.greedy and params.logprobs is None and not params.logit_bias
    free = params.choice is None and params.grammar is None
    return plain and free and not params.needs_history


@dataclass(frozen=True, slots=True)
class _Context:
    """What penalties and biases depend on; tokens are places among the logits."""

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    biases: dict[int, float]

    @classmethod
    def of(
        cls, request: Request, output: Sequence[int], token_ids: Sequence[int] | None
    ) -> "_Context":
        params, prompt = request.params, request.prompt_token_ids
        if token_ids is None or not (params.needs_history or params.logit_bias):
            return cls(params, prompt, output, params.logit_bias)
        places = {token_id: place for place, token_id in enumerate(token_ids)}
        return cls(
            params,
            [places[token_id] for token_id in prompt if token_id in places],
            [places[token_id] for token_id in output if token_id in places],
            {places[key]: bias for key, bias in params.logit_bias.items() if key in places},
        )


def _adjust(logits: Tensor, context: _Context) -> Tensor:
    """Penalties and biases, as OpenAI (presence, frequency) and CTRL (repetition) define them."""
    params = context.params
    if not (params.needs_history or params.logit_bias):
        return logits
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*context.prompt, *context.output}), dtype=torch.int64)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        output = torch.tensor(context.output, dtype=torch.int64)
        counts = torch.bincount(output, minlength=logits.shape[0]).to(logits.device)
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if context.biases:
        ids = torch.tensor(list(context.biases), device=logits.device)
        logits[ids] += torch.tensor(list(context.biases.values()), device=logits.device)
    return logits


def _draw(logits: Tensor, params: SamplingParams, share: float) -> int:
    """A token from the tempered, truncated distribution, by inversion of its cumulative sum."""
    # However small the temperature, nothing above 0 is divided by it.
    logits = logits.double()
    probabilities = ((logits - logits.max()) / params.temperature).softmax(-1)
    ids = None
    if params.top_k or params.top_p < 1 or params.min_p:
        probabilities, ids = _truncate(probabilities, params)
    cumulative = probabilities.cumsum(-1)
    point = share * cumulative[-1]
    index = int(torch.searchsorted(cumulative, point, right=True))
    # Rounding may put the point at the very end: behind the last token that can be drawn.
    index = min(index, int(torch.searchsorted(cumulative, cumulative[-1])))
    return index if ids is None else int(ids[index])


def _truncate(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that top_k, top_p and min_p leave, likeliest first, and their ids."""
    if params.top_k:
        values, ids = probabilities.topk(min(params.top_k, len(probabilities)))
    else:
        values, ids = probabilities.sort(descending=True, stable=True)
    if params.top_p < 1:
        before = values.cumsum(-1) - values
        keep = int((before < params.top_p * values.sum()).sum())
        values, ids = values[:keep], ids[:keep]
    if params.min_p:
        keep = int((values >= params.min_p * values[0]).sum())
        values, ids = values[:keep], ids[:keep]
    return values, ids


def uniform(seed: int, position: int) -> float:
    """The draw in [0, 1) for one position of one request: a function of the two and nothing else.

    So a seeded request gives the same tokens alone, in a batch, and after preemption.
    """
    key = f"{seed}:{position}".encode()
    bits = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return (bits >> 11) / (1 << 53)
