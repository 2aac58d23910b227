"""Base models in bitsandbytes' formats: made once from the 16-bit weights, kept in the cache.

A checkpoint is saved before its layers ever run: the first forward repacks them on the CPU, and
saving afterwards would lose bits.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from finlora.bases.checkpoints import KEPT_QUANTISED, checkpoint_folder
from finlora.bases.fit import check_fit
from finlora.bases.progress import busy
from finlora.bases.quiet import quiet_transformers
from finlora.bases.store import ensure
from finlora.config import Quantization

logger = logging.getLogger(__name__)

BLOCK_SIZE = 64


def load_quantized(
    source: Path,
    fingerprint: str,
    quantization: Quantization,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The model of a source folder, its linear layers stored as asked, the rest in `dtype`.

    Raises BaseModelError when the folder's weights do not fit its config.
    """
    folder = prepare(source, fingerprint, quantization, dtype)
    if folder != source:
        return _read(folder, None, dtype, device)
    config = None
    if quantization is Quantization.INT8:
        # Threshold 0: the default splits off columns by the largest value of the whole batch, which
        # would make a request's answer depend on its batch mates.
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = _read(source, config, dtype, device)
    _own_memory(model)
    return model


def prepare(source: Path, fingerprint: str, quantization: Quantization, dtype: torch.dtype) -> Path:
    """The folder to load from: for four bits a checkpoint, made first where it is missing.

    It is always quantised on the CPU: the same bits on every device.
    """
    if quantization not in KEPT_QUANTISED:
        return source
    kind = f"{quantization}-{str(dtype).removeprefix('torch.')}"
    folder = checkpoint_folder(source, fingerprint, kind)
    return ensure(folder, lambda new: _save_checkpoint(source, new, quantization, dtype))


def _save_checkpoint(
    source: Path, folder: Path, quantization: Quantization, dtype: torch.dtype
) -> None:
    logger.info("quantising %s to %s", source.name, quantization)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=str(quantization),
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_blocksize=BLOCK_SIZE,
    )
    with busy("quantising"):
        model = _read(source, config, dtype, torch.device("cpu"))
        with quiet_transformers():
            model.save_pretrained(folder)


def _read(
    folder: Path, config: BitsAndBytesConfig | None, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    with quiet_transformers():
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            # Passed as None it would hide what a checkpoint's own config says.
            **({} if config is None else {"quantization_config": config}),
            dtype=dtype,
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the report has them, the error would not name them
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, report = found
    check_fit(folder, model, report)
    return model


def _own_memory(model: PreTrainedModel) -> None:
    """Copy what still stands in mapped files: a user may overwrite or cut them under us.

    The cache needs no copy: its files are replaced whole, never changed.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
