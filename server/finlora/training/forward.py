"""Log-probabilities of a batch's targets; the vocabulary is computed at their positions only."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from finlora.training.batches import Batch
from finlora.training.block import gives_wanted
from finlora.training.packed_attention import use_packed_attention


def target_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N] in float32: log P(target | everything before it in its row)."""
    use_packed_attention(model)
    wanted = {"wanted": batch.positions} if gives_wanted(model) else {}
    output = model(
        input_ids=batch.input_ids[None],
        position_ids=batch.packing.positions(batch.input_ids.device),
        packing=batch.packing,
        use_cache=False,
        logits_to_keep=0 if wanted else batch.positions,
        **wanted,
    )
    logits = output.logits.squeeze(0).float()
    return -F.cross_entropy(logits, batch.targets, reduction="none")


@torch.no_grad()
def row_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[B]: log-probability of each row's whole target."""
    sums = torch.zeros(batch.packing.num_rows, device=batch.input_ids.device)
    return sums.index_add(0, batch.rows, target_logprobs(model, batch))
