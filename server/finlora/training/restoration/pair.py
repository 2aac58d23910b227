"""The 16-bit base and the quantised one with layers that learn, side by side in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finlora.config import Quantization
from finlora.model import LoadedBase, load_base
from finlora.training.four_bit_base import check_double_quantised, exchange_four_bit_layers
from finlora.training.fused import fuse
from finlora.training.lora_layer import LoRASettings, TrainableLoRA, attach, plain_weight
from finlora.training.packed_attention import use_packed_attention


@dataclass(frozen=True, slots=True)
class Pair:
    """`teacher` computes what `student` shall compute."""

    teacher: LoadedBase
    student: LoadedBase
    layers: dict[str, TrainableLoRA]  # of the student; their scaling is 1

    def error(self, name: str) -> Tensor:
        """[out_features, in_features] in float32: what quantisation took from a layer."""
        original = self.teacher.model.get_submodule(name)
        return plain_weight(original) - plain_weight(self.layers[name].base)

    @torch.no_grad()
    def teacher_logprobs(self, ids: Tensor) -> Tensor:
        """[tokens, vocabulary] in float32."""
        return _logprobs(self.teacher, ids)

    def student_logprobs(self, ids: Tensor) -> Tensor:
        """[tokens, vocabulary] in float32."""
        return _logprobs(self.student, ids)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is learned."""
        for layer in self.layers.values():
            yield from (layer.a, layer.b)


def load_pair(model: str, *, rank: int, seed: int, device: str) -> Pair:
    """Load both; the student starts as the bare quantised base. Raises BaseModelError."""
    teacher = load_base(model, Quantization.NONE, device=device, training=True)
    student = load_base(model, Quantization.NF4, device=device, training=True)
    check_double_quantised(student.model)
    exchange_four_bit_layers(student.model, student.compute_dtype)
    for base in (teacher, student):
        use_packed_attention(base.model)
        fuse(base.model)
    settings = LoRASettings(rank=rank, alpha=float(rank))
    names = list(student.spec.linear_layers)
    layers = attach(student, names, settings, seed=seed)
    return Pair(teacher, student, layers)


def _logprobs(base: LoadedBase, ids: Tensor) -> Tensor:
    logits: Tensor = base.model(input_ids=ids.to(base.device), use_cache=False).logits
    return logits.float().log_softmax(-1).flatten(0, -2)
