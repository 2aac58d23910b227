"""From a request's state to what it gives back: why it ends, and what is new."""

from finlora.engine.request import FinishReason, Request, RequestOutput
from finlora.errors import FinLoRAError


def finish_reason(
    request: Request, token_id: int, *, more_follow: bool = False
) -> tuple[FinishReason | None, str | int | None]:
    """Whether the request ends with its last token, and by which stop string or stop token.

    `more_follow`: the step gave the request further tokens.
    """
    params = request.params
    if params.max_tokens == 0:  # only the prompt was asked for
        return FinishReason.LENGTH, None
    if token_id in request.eos_token_ids and not params.ignore_eos:
        return FinishReason.STOP, None
    if token_id in params.stop_token_ids:
        return FinishReason.STOP, token_id
    if request.detokenizer.append(token_id):
        return FinishReason.STOP, request.detokenizer.stop_reason
    if request.constraint is not None and request.constraint.must_end and not more_follow:
        return FinishReason.STOP, None
    if len(request.output_token_ids) >= params.max_tokens:
        return FinishReason.LENGTH, None
    return None, None


def emit(
    request: Request,
    reason: FinishReason | None = None,
    stop_reason: str | int | None = None,
    error: FinLoRAError | None = None,
) -> RequestOutput:
    """What is new since the last output."""
    first_new = request.num_emitted_tokens
    is_first = first_new == 0
    request.num_emitted_tokens = len(request.output_token_ids)
    if reason in (FinishReason.STOP, FinishReason.LENGTH):
        request.detokenizer.flush()
    params = request.params
    return RequestOutput(
        request_id=request.request_id,
        token_ids=tuple(request.output_token_ids[first_new:]),
        text=request.detokenizer.take(final=reason is not None),
        logprobs=None if params.logprobs is None else tuple(request.logprobs[first_new:]),
        prompt_logprobs=(
            tuple(request.prompt_logprobs)
            if is_first and params.prompt_logprobs is not None
            else None
        ),
        choice_logprobs=_choice_logprobs(request) if reason is FinishReason.STOP else None,
        finish_reason=reason,
        stop_reason=stop_reason,
        error=error,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=len(request.output_token_ids),
        num_cached_tokens=request.num_cached_tokens,
    )


def _choice_logprobs(request: Request) -> tuple[float, ...] | None:
    choice, scores = request.params.choice, request.choice_scores
    if choice is None or len(scores) <= choice.num_branches:
        return None
    return choice.label_logprobs([scores[node] for node in range(choice.num_branches + 1)])
