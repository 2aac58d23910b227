"""Turns a GGUF file into a plain transformers folder in bfloat16."""

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from finlora.bases.quiet import quiet_transformers


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write config, weights, tokenizer and generation config of the GGUF file into the folder."""
    # transformers writes empty progress lines here, asked or not.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        _convert_tokenizer(gguf, folder)
        _convert_weights(gguf, folder)


def _convert_tokenizer(gguf: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names the pre-tokenizer ("smollm") instead of describing it, and transformers falls back
    # to one that does not split digits; the model was trained on single digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.save_pretrained(folder)


def _convert_weights(gguf: Path, folder: Path) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        # Without it the modules keep the packed blocks and cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
