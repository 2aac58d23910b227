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

from finlora.native import thin
from finlora.training.frozen import Frozen
from finlora.training.recomputed import Identity, Recipe

ROWS = Identity()


class Operand(NamedTuple):
    """A frozen layer [out, in]; a [r, in] and b [out, r] learn."""

    layer: Frozen
    a: Tensor
    b: Tensor


def lora_product(x: Tensor, operand: Operand, scaling: float) -> Tensor:
    """[..., in] -> [..., out]: x W^T + bias + scaling * (x A^T) B^T."""
    return lora_products(ROWS, (x,), (operand,), scaling)[0]


def lora_products(
    recipe: Recipe, inputs: Sequence[Tensor], operands: Sequence[Operand], scaling: float
) -> tuple[Tensor, ...]:
    """The same for each operand, of [..., in] that the recipe makes of the inputs."""
    layers = [operand.layer for operand in operands]
    learned = [matrix for operand in operands for matrix in (operand.a, operand.b)]
    products: tuple[Tensor, ...] = _LoRAProducts.apply(  # type: ignore[no-untyped-call]
        recipe, scaling, layers, len(inputs), *inputs, *learned
    )
    return products


class _LoRAProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        recipe: Recipe,
        scaling: float,
        layers: Sequence[Frozen],
        num_inputs: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, operands = tensors[:num_inputs], _operands(layers, tensors[num_inputs:])
        x = recipe.value(*inputs)
        rows = x.flatten(0, -2)
        low = rows @ _stacked(operands, rows.dtype).T  # [rows, all ranks]
        ctx.save_for_backward(low, *tensors)
        ctx.recipe, ctx.scaling, ctx.layers, ctx.num_inputs = recipe, scaling, layers, num_inputs
        return tuple(
            operand.layer.product(rows, _update(part, operand, scaling)).view(*x.shape[:-1], -1)
            for operand, part in zip(operands, _by_rank(low, operands), strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        inputs, operands = tensors[: ctx.num_inputs], _operands(ctx.layers, tensors[ctx.num_inputs :])
        dys = [dy.reshape(len(low), -1) for dy in gradients]
        through = _through(dys, operands, ctx.scaling)
        d_inputs: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if any(ctx.needs_input_grad[4 : 4 + len(inputs)]):
            dx = _through_layers(dys, through, operands).view(*inputs[0].shape[:-1], -1)
            x, d_inputs = ctx.recipe.back(dx, *inputs)
        else:
            x = ctx.recipe.value(*inputs)
        learned = _learned(x.flatten(0, -2), low, through, dys, operands, ctx.scaling)
        return None, None, None, None, *d_inputs, *learned


def _update(low: Tensor, operand: Operand, scaling: float) -> tuple[Tensor, Tensor] | None:
    """Of a layer's output, by the product itself."""
    if not len(operand.a):
        return None
    columns = (operand.b.T * scaling).to(low.dtype)
    return low.contiguous(), columns.contiguous()


def _through(dys: Sequence[Tensor], operands: Sequence[Operand], scaling: float) -> Tensor:
    """[all ranks, rows]: gradient of the rows' products with every a."""
    # For few ranks a CPU computes the transposed product in half the time.
    parts = [operand.b.T.to(dy.dtype) @ dy.T for dy, operand in zip(dys, operands, strict=True)]
    return torch.cat(parts).mul_(scaling)


def _through_layers(dys: Sequence[Tensor], through: Tensor, operands: Sequence[Operand]) -> Tensor:
    """[rows, in]: gradient of the rows, added up by the products themselves."""
    update = through.T.contiguous(), _stacked(operands, through.dtype)
    dx = operands[0].layer.product_back(dys[0], update, None)
    for dy, operand in zip(dys[1:], operands[1:], strict=True):
        operand.layer.product_back(dy, None, dx)
    return dx


def _learned(
    rows: Tensor,
    low: Tensor,
    through: Tensor,
    dys: Sequence[Tensor],
    operands: Sequence[Operand],
    scaling: float,
) -> list[Tensor]:
    """Gradients of every a and b, one after the other."""
    found: list[Tensor] = []
    da = _thin_product(through, rows).split([len(operand.a) for operand in operands])
    for dy, part, operand, own in zip(dys, _by_rank(low, operands), operands, da, strict=True):
        db = _thin_product(part.T, dy).T.to(operand.b.dtype) * scaling
        found += [own.to(operand.a.dtype), db]
    return found


def _thin_product(few: Tensor, many: Tensor) -> Tensor:
    """[ranks, rows] [rows, columns]."""
    return thin.product(few, many) if thin.fits(few, many) else few @ many


def _operands(layers: Sequence[Frozen], learned: Sequence[Tensor]) -> list[Operand]:
    return [Operand(layer, *learned[2 * i : 2 * i + 2]) for i, layer in enumerate(layers)]


def _stacked(operands: Sequence[Operand], dtype: torch.dtype) -> Tensor:
    """[all ranks, in]."""
    return torch.cat([operand.a for operand in operands]).to(dtype)


def _by_rank(tensor: Tensor, operands: Sequence[Operand]) -> tuple[Tensor, ...]:
    """The columns [..., r] of each operand."""
    return torch.split(tensor, [len(operand.a) for operand in operands], dim=-1)
