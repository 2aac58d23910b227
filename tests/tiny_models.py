"""Small random models with a real tokenizer, saved as local folders that every loader can read.

Sizes satisfy the packed NF4 kernel (inputs % 64, outputs % 32); weights are large enough that the
likeliest token is rarely a near-tie.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START, END)
VOCAB_SIZE = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "The bank raised its outlook after a strong quarter in consumer lending.",
    "Shares of the airline fell 4.2 percent when fuel costs rose again.",
    "Instruction: What is the sentiment of this news? Please choose an answer from "
    "{negative/neutral/positive}.",
    "Input: Operating profit was 12.5 million euros, down from 17.8 million a year ago.",
    "Answer: positive",
    "Answer: negative",
    "Answer: neutral",
    "The company said it would keep its dividend unchanged for 2025 and 2026.",
    "Zürich's insurer café chain paid €3 for each share; investors cheered 🎉.",
    "Analysts expect revenue growth of between 6 and 8 percent next year.",
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXTRAS: dict[str, dict[str, Any]] = {
    # Windows shorter than the prompts of the tests, so that they bite.
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    # Qwen2 has no head_dim of its own: hidden_size / num_attention_heads.
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most VOCAB_SIZE tokens; any text survives a round trip."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build(architecture: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Save a random float32 model of a transformers `model_type`; `overrides` go to its config.

    Norm weights and biases are random too: with their initial ones and zeros a test would not
    notice when they are left out.
    """
    settings = SIZES | EXTRAS.get(architecture, {}) | overrides
    settings = {name: value for name, value in settings.items() if value is not None}
    config = AutoConfig.for_model(architecture, **settings)
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in _vectors(model):
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Overwrite fields of the folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields), "utf-8")


def _vectors(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.dim() == 1)
