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
from finlora.native.four_bit import Update
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
        inputs, learned = tensors[:num_inputs], tensors[num_inputs:]
        x = recipe.value(*inputs)
        rows = x.flatten(0, -2)
        a = torch.cat(learned[::2]).to(rows.dtype)  # [all ranks, in]
        columns = [(b.T * scaling).to(rows.dtype).contiguous() for b in learned[1::2]]  # [r, out]
        low = _product_of_rows(a, rows)
        ctx.save_for_backward(low, a, *columns, *inputs)
        ctx.recipe, ctx.scaling, ctx.layers = recipe, scaling, layers
        ctx.learned_dtype = learned[0].dtype
        updates = zip(_by_rank(low, columns), columns, strict=True)
        return tuple(
            layer.product(rows, update).view(*x.shape[:-1], -1)
            for layer, update in zip(layers, updates, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, a, *others = ctx.saved_tensors
        columns, inputs = others[: len(ctx.layers)], others[len(ctx.layers) :]
        dys = [dy.reshape(low.shape[1], -1) for dy in gradients]
        pairs = zip(columns, dys, strict=True)
        through = torch.cat([_product_of_rows(few, dy) for few, dy in pairs])
        d_inputs: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if any(ctx.needs_input_grad[4 : 4 + len(inputs)]):
            dx = _through_layers(dys, ctx.layers, (through, a))
            x, d_inputs = ctx.recipe.back(dx.view(*inputs[0].shape[:-1], -1), *inputs)
        else:
            x = ctx.recipe.value(*inputs)
        da = _by_rank(_product(through, x.flatten(0, -2)).to(ctx.learned_dtype), columns)
        db = [
            _product(few, dy).T.to(ctx.learned_dtype) * ctx.scaling
            for few, dy in zip(_by_rank(low, columns), dys, strict=True)
        ]
        learned = [d for pair in zip(da, db, strict=True) for d in pair]
        return None, None, None, None, *d_inputs, *learned


def _through_layers(dys: Sequence[Tensor], layers: Sequence[Frozen], update: Update) -> Tensor:
    """[rows, in]: gradient of the rows, added up by the products themselves."""
    dx = layers[0].product_back(dys[0], update, None)
    for dy, layer in zip(dys[1:], layers[1:], strict=True):
        layer.product_back(dy, None, dx)
    return dx


def _product(few: Tensor, rows: Tensor) -> Tensor:
    """[ranks, rows] [rows, columns]."""
    return thin.product(few, rows) if thin.fits(rows) else few @ rows


def _product_of_rows(few: Tensor, rows: Tensor) -> Tensor:
    """[ranks, size] and [rows, size] -> [ranks, rows]."""
    return thin.product_of_rows(few, rows) if thin.fits(rows) else few @ rows.T


def _by_rank(tensor: Tensor, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of [all ranks, ...], each layer's own."""
    if len(columns) == 1:
        return (tensor,)
    return tensor.split_with_sizes([own.shape[0] for own in columns])
