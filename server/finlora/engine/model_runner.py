"""Runs a scheduled batch through the model: token ids in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finlora.attention_interface import use_attention
from finlora.engine import grouped_attention, native_attention
from finlora.engine.attention import IMPLEMENTATION, SequenceSpan, paged_attention
from finlora.engine.batch import NO_SLOT, Batch, ScheduledSequence
from finlora.engine.kv_cache import KVCache
from finlora.engine.llama_attention import replace_attention
from finlora.engine.llama_layer import WantedRows, replace_layers
from finlora.engine.lora import LoRASlots
from finlora.engine.lora_batch import LoRABatch, Segment
from finlora.engine.wide import StepRows

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class BatchLogits:
    """Logits of the rows that somebody asked for, in the order of the batch's sequences."""

    next_token: Tensor  # [sequences that sample, vocabulary]
    prompt: list[tuple[ScheduledSequence, Tensor]]  # [num_tokens, vocabulary] of a prompt chunk


class ModelRunner:
    """Owns the model; borrows the KV cache and the adapter slots."""

    def __init__(
        self, model: PreTrainedModel, kv_cache: KVCache, slots: LoRASlots, rows: StepRows
    ) -> None:
        use_attention(model, IMPLEMENTATION, paged_attention)
        natively = native_attention.fits(model, kv_cache.layout)
        self._build_batch = (native_attention if natively else grouped_attention).build_batch
        self._narrows = False  # whether the last layer gives the wanted rows alone
        if natively:
            replace_attention(model)
            self._narrows = replace_layers(model, slots, rows)
        self._model = model
        self._kv_cache = kv_cache
        self._slots = slots
        self._rows = rows

    @property
    def vocab_size(self) -> int:
        """Token ids below this have an embedding."""
        size: int = self._model.config.get_text_config().vocab_size
        return size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    @torch.inference_mode()
    def run(self, batch: Batch) -> BatchLogits:
        """One packed forward over prompt chunks and decode tokens together."""
        device = self._model.device
        token_ids = np.concatenate([np.array(s.token_ids, np.int64) for s in batch.sequences])
        positions = np.concatenate(
            [np.arange(s.start, s.start + s.num_tokens) for s in batch.sequences]
        )
        rows = _logits_rows(batch)
        counts = list(map(len, rows))
        self._slots.batch = _lora_batch(batch, [s.num_tokens for s in batch.sequences])
        self._rows.num_decodes = sum(s.decodes for s in batch.sequences)
        spans = [
            SequenceSpan(s.running.row, s.start, s.num_tokens, s.decodes) for s in batch.sequences
        ]
        logits: Tensor = self._model(
            input_ids=torch.from_numpy(token_ids).to(device)[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            use_cache=False,
            **self._kept(batch, rows, counts),
            attention_batch=self._build_batch(self._kv_cache.pools, self._kv_cache.table, spans),
        ).logits[0]
        return _split(batch, logits, counts)

    def _kept(self, batch: Batch, rows: Sequence[Rows], counts: Sequence[int]) -> dict[str, object]:
        """How the model is told which rows' logits are wanted, `counts` of each sequence."""
        index = torch.from_numpy(np.concatenate(rows)).to(self._model.device)
        if not self._narrows:
            return {"logits_to_keep": index}
        if len(index) == batch.num_tokens:
            return {}
        num_decodes = sum(n for n, s in zip(counts, batch.sequences, strict=True) if s.decodes)
        return {"wanted": WantedRows(index, _lora_batch(batch, counts), num_decodes)}


def _logits_rows(batch: Batch) -> list[Rows]:
    """Rows of the packed batch whose logits each sequence needs: all, the last, or none."""
    rows = []
    start = 0
    for sequence in batch.sequences:
        stop = start + sequence.num_tokens
        first = start if sequence.needs_prompt_logits else stop - sequence.samples
        rows.append(np.arange(first, stop, dtype=np.int64))
        start = stop
    return rows


def _split(batch: Batch, logits: Tensor, num_rows: list[int]) -> BatchLogits:
    next_rows = []
    prompt = []
    stop = 0
    for sequence, count in zip(batch.sequences, num_rows, strict=True):
        start, stop = stop, stop + count
        if sequence.needs_prompt_logits:
            prompt.append((sequence, logits[start:stop]))
        if sequence.samples:
            next_rows.append(stop - 1)
    every_row = next_rows == list(range(len(logits)))
    return BatchLogits(logits if every_row else logits[next_rows], prompt)


def _lora_batch(batch: Batch, counts: Sequence[int]) -> LoRABatch | None:
    """The runs of neighbouring rows that share a slot, `counts` of each sequence; None when nobody
    has one."""
    slots = [sequence.running.slot for sequence in batch.sequences]
    runs = groupby(zip(slots, counts, strict=True), key=itemgetter(0))
    segments = [Segment(slot, sum(count for _, count in run)) for slot, run in runs]
    used = tuple(segment for segment in segments if segment.num_rows)
    adapted = any(segment.slot != NO_SLOT for segment in used)
    return LoRABatch(used) if adapted else None
