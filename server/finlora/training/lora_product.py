"""Products of frozen layers that read the same rows, with their LoRA updates, as one operation with
one backward pass.

Autograd by itself keeps the rows and the updates' intermediate results, copies a layer's output to
add to it, and writes two gradients of the rows for each layer that it then adds up.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finlora.training.recomputed import Identity, Recipe

ROWS = Identity()


class Operand(NamedTuple):
    """A frozen layer, weight [out, in] and bias; a [r, in] and b [out, r] learn."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor


def lora_product(x: Tensor, operand: Operand, scaling: float) -> Tensor:
    """[..., in] -> [..., out]: x W^T + bias + scaling * (x A^T) B^T."""
    return lora_products(ROWS, (x,), (operand,), scaling)[0]


def lora_products(
    recipe: Recipe, inputs: Sequence[Tensor], operands: Sequence[Operand], scaling: float
) -> tuple[Tensor, ...]:
    """The same for each operand, of [..., in] that the recipe makes of the inputs."""
    flat = [tensor for operand in operands for tensor in operand]
    products: tuple[Tensor, ...] = _LoRAProducts.apply(  # type: ignore[no-untyped-call]
        recipe, scaling, len(inputs), *inputs, *flat
    )
    return products


class _LoRAProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, scaling: float, num_inputs: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        inputs, operands = tensors[:num_inputs], _operands(tensors[num_inputs:])
        x = recipe.value(*inputs)
        rows = x.flatten(0, -2)
        low = rows @ _stacked(operands, rows.dtype).T  # [rows, all ranks]
        ctx.save_for_backward(low, *tensors)
        ctx.recipe, ctx.scaling, ctx.num_inputs = recipe, scaling, num_inputs
        return tuple(
            _product(rows, operand, part, scaling).view(*x.shape[:-1], -1)
            for operand, part in zip(operands, _by_rank(low, operands), strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        inputs, operands = tensors[: ctx.num_inputs], _operands(tensors[ctx.num_inputs :])
        dys = [dy.reshape(len(low), -1) for dy in gradients]
        through = _through(dys, operands, ctx.scaling)
        d_inputs: tuple[Tensor | None, ...] = (None,) * len(inputs)
        x, pull = ctx.recipe.again(*inputs)
        rows = x.flatten(0, -2)
        learned = _learned(rows, low, through, dys, operands, ctx.scaling)
        if any(ctx.needs_input_grad[3 : 3 + len(inputs)]):
            dx = _through_layers(dys, through, operands).view_as(x)
            d_inputs = pull(dx)
        return None, None, None, *d_inputs, *learned


def _through(dys: Sequence[Tensor], operands: Sequence[Operand], scaling: float) -> Tensor:
    """[rows, all ranks]: gradient of the rows' products with every a."""
    # For few ranks a CPU computes the transposed product in half the time, here and below.
    parts = [operand.b.T.to(dy.dtype) @ dy.T for dy, operand in zip(dys, operands, strict=True)]
    return torch.cat(parts).mul_(scaling).T


def _through_layers(dys: Sequence[Tensor], through: Tensor, operands: Sequence[Operand]) -> Tensor:
    """[rows, in]: gradient of the rows, added up by the products themselves."""
    dx = dys[0] @ operands[0].weight
    for dy, operand in zip(dys[1:], operands[1:], strict=True):
        dx.addmm_(dy, operand.weight)
    return dx.addmm_(through, _stacked(operands, through.dtype))


def _learned(
    rows: Tensor,
    low: Tensor,
    through: Tensor,
    dys: Sequence[Tensor],
    operands: Sequence[Operand],
    scaling: float,
) -> list[Tensor | None]:
    """Gradients of the operands' fields, one after the other."""
    found: list[Tensor | None] = []
    da = (through.T @ rows).split([len(operand.a) for operand in operands])
    for dy, part, operand, own in zip(dys, _by_rank(low, operands), operands, da, strict=True):
        db = (part.T @ dy).T.to(operand.b.dtype) * scaling
        found += [None, None, own.to(operand.a.dtype), db]
    return found


def _operands(flat: Sequence[Tensor]) -> list[Operand]:
    size = len(Operand._fields)
    return [Operand(*flat[i : i + size]) for i in range(0, len(flat), size)]


def _stacked(operands: Sequence[Operand], dtype: torch.dtype) -> Tensor:
    """[all ranks, in]."""
    return torch.cat([operand.a for operand in operands]).to(dtype)


def _by_rank(tensor: Tensor, operands: Sequence[Operand]) -> tuple[Tensor, ...]:
    """The columns [..., r] of each operand."""
    return torch.split(tensor, [len(operand.a) for operand in operands], dim=-1)


def _product(rows: Tensor, operand: Operand, low: Tensor, scaling: float) -> Tensor:
    weight, bias, _, b = operand
    y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
    return y.addmm_(low, b.T.to(rows.dtype), alpha=scaling)
