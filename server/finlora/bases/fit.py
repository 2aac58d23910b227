"""Whether a model got the tensors that its config asks for.

transformers invents what a folder lacks, leaves out what does not fit, and only logs it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel

from finlora.errors import BaseModelError

MAX_NAMED = 3


def check_fit(folder: Path, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """`report` is the loading info of `from_pretrained`. Raises BaseModelError."""
    found = sorted({*_misfits(model, report), *_misshapen(model)})
    if found:
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        named = ", ".join(found[:MAX_NAMED])
        raise BaseModelError(f"{folder}: weights and config.json do not fit: {named}{more}")


def _misfits(model: PreTrainedModel, report: dict[str, Any]) -> Iterator[str]:
    for name in report["missing_keys"]:  # without those that are tied to another
        yield f"{name} is missing"
    for name, found, expected in report["mismatched_keys"]:
        yield f"{name} is {list(found)}, not {list(expected)}"
    for name in report["unexpected_keys"]:
        # Others are harmless: parts that only training uses, layers that the config cuts off.
        if isinstance(_owner(model, name), nn.Linear):
            yield f"{name} has no place in the model"


def _misshapen(model: PreTrainedModel) -> Iterator[str]:
    """transformers does not compare the shapes of what it quantises."""
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            found, expected = _stored_shape(module), [module.out_features, module.in_features]
            if found != expected:
                yield f"{name}.weight is {found}, not {expected}"


def _stored_shape(layer: Linear4bit | Linear8bitLt) -> list[int]:
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)  # in four bits, unless the tensor is missing
    return list(weight.shape if state is None else state.shape)


def _owner(model: nn.Module, tensor: str) -> nn.Module | None:
    """The module that a tensor belongs to by its name."""
    try:
        return model.get_submodule(tensor.rpartition(".")[0])
    except AttributeError:
        return None
