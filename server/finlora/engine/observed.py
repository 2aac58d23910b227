"""What the metrics are told, read off the engine's own objects."""

from collections import Counter

import torch

from finlora.engine.batch import Batch
from finlora.engine.request import FinishReason, Request
from finlora.errors import FinLoRAError
from finlora.metrics import FinishedRequest

ANSWERS = (FinishReason.STOP, FinishReason.LENGTH)


def finished(
    request: Request,
    reason: FinishReason,
    error: FinLoRAError | None = None,
    *,
    is_withdrawn: bool = False,
) -> FinishedRequest:
    """The request's life, now that it has ended."""
    labels = None if request.adapter is None else request.adapter.manifest.labels
    return FinishedRequest(
        request_id=request.request_id,
        adapter=name_of(request),
        digest=request.digest,
        labels=labels or (),
        reason=reason.value,
        error=None if error is None else type(error).__name__,
        error_text=None if error is None else str(error),
        text=request.detokenizer.text if reason in ANSWERS else "",
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=len(request.output_token_ids),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        arrival_time=request.arrival_time,
        start_time=request.start_time,
        first_token_time=request.first_token_time,
        last_token_time=request.last_token_time,
        is_withdrawn=is_withdrawn,
    )


def name_of(request: Request) -> str | None:
    """The registered name of the request's adapter; None for the base."""
    return None if request.adapter is None else request.adapter.name


def rows_by_adapter(batch: Batch) -> Counter[str | None]:
    """How many rows of the packed batch each adapter has."""
    rows: Counter[str | None] = Counter()
    for sequence in batch.sequences:
        rows[name_of(sequence.request)] += sequence.num_tokens
    return rows


def cuda_bytes(device: torch.device) -> dict[str, int]:
    """What the CUDA allocator holds; nothing on another device."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
    }
