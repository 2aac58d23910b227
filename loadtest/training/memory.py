"""Memory that training takes: measured on a base at hand, computed for Llama 3.1 8B.

    python -m loadtest.training.memory

Every measured row is a process of its own with two optimizer steps on random rows. The computed
table is arithmetic over the layers of an empty model; nothing of that size was run for it.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from transformers import LlamaConfig

from finlora.bases.architecture import empty_model, linear_layers
from finlora.bases.quantized import BLOCK_SIZE
from finlora.bases.quiet import quiet_libraries
from finlora.config import DEFAULT_BASE
from finlora.training.allocator import keep_freed_memory
from finlora.training.batches import Example
from finlora.training.config import TrainingConfig
from finlora.training.trainer import Trainer
from finlora.training.workshop import attach_layers, load_for_training
from loadtest.subject import end_in_order
from loadtest.training.measurement import peak_bytes

ROWS = 16
STEPS = 2
SHARED_TOKENS = 27  # FinLoRA's instruction
RANK = 8
MB, GB = 1e6, 1e9
# Bits of a weight in storage: blocks with double quantisation, one scale a row, none.
STORED_BITS = {4: 4 + 8 / BLOCK_SIZE + 32 / (BLOCK_SIZE * 256), 8: 8.0, 16: 16.0}
LLAMA_3_1_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)
COMPUTED_TOKENS = 2048  # of the rows that are computed together


@dataclass(frozen=True, slots=True)
class Case:
    """One way of training."""

    quant_bits: int
    num_tokens: int  # of a row
    use_dora: bool = False
    checkpointing: bool = False

    @property
    def title(self) -> str:
        """For the table."""
        kind = {4: "NF4", 8: "int8", 16: "16 bits"}[self.quant_bits]
        return kind + (" + DoRA" if self.use_dora else "")


CASES = [
    *(Case(bits, 68) for bits in (4, 8, 16)),
    Case(4, 68, use_dora=True),
    Case(4, 256),
    Case(4, 256, checkpointing=True),
]


def measure(model: str, case: Case) -> tuple[int, int]:
    """Resident bytes of this process before the first step, and its peak over all."""
    config = TrainingConfig(
        base_model=model,
        quant_bits=case.quant_bits,  # type: ignore[arg-type]
        lora_r=RANK,
        peft_use_dora=case.use_dora,
        batch_size=ROWS,
        num_epochs=1,
    )
    base = load_for_training(config, device="cpu")
    layers = attach_layers(base, config)
    trainer = Trainer(base.model, layers, config, checkpointing=case.checkpointing)
    ready = peak_bytes()
    rows = _rows(case.num_tokens, base.model.config.vocab_size)
    trainer.fit(lambda _: rows, on_step=lambda _: None)
    return ready, peak_bytes()


def _rows(num_tokens: int, vocab_size: int) -> list[Example]:
    draw = random.Random(0)
    shared = [draw.randrange(vocab_size) for _ in range(min(SHARED_TOKENS, num_tokens - 3))]
    num_own = num_tokens - len(shared) - 2
    return [
        Example(shared + [draw.randrange(vocab_size) for _ in range(num_own)], [1, 2])
        for _ in range(ROWS * STEPS)
    ]


def measured_table(model: str) -> Iterator[str]:
    """Markdown, line by line as the processes end."""
    yield f"| {model} | tokens a row | checkpointing | before the first step, MB | peak, MB |"
    yield "|---|---:|---|---:|---:|"
    for case in CASES:
        command = [sys.executable, "-m", "loadtest.training.memory", "--model", model]
        command += ["--case", json.dumps(asdict(case))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        ready, peak = json.loads(done.stdout.splitlines()[-1])
        again = "yes" if case.checkpointing else "no"
        yield (
            f"| {case.title} | {case.num_tokens} | {again} | {ready / MB:,.0f} | {peak / MB:,.0f} |"
        )


def computed_table(config: LlamaConfig) -> Iterator[str]:
    """Markdown, in GB, for a GPU: paged 8-bit AdamW, bf16 compute, activations computed again."""
    model = empty_model(config)
    shapes = linear_layers(model).values()
    linear = sum(shape.in_features * shape.out_features for shape in shapes)
    others = sum(parameter.numel() for parameter in model.parameters()) - linear
    adapter = sum(RANK * (shape.in_features + shape.out_features) for shape in shapes)
    learned = adapter * (4 + 4 + 2)  # float32 master and gradient, two bytes of 8-bit state
    activations = COMPUTED_TOKENS * _activation_bytes_per_token(config)
    yield "| Llama 3.1 8B | layers | embeddings, head | adapter, AdamW | activations | sum, GB |"
    yield "|---|---:|---:|---:|---:|---:|"
    for bits, stored in STORED_BITS.items():
        parts = [linear * stored / 8, others * 2, learned, activations]
        cells = [f"{part / GB:.2f}" for part in (*parts, sum(parts))]
        yield f"| {Case(bits, 0).title} | {' | '.join(cells)} |"


def _activation_bytes_per_token(config: LlamaConfig) -> int:
    """Every block's input, and what one block keeps while its backward pass runs; 2 bytes each."""
    size = config.hidden_size
    shared = config.num_attention_heads // (
        config.num_key_value_heads or config.num_attention_heads
    )
    # Inputs of both norms, of q, k, v and of gate, up; queries, attended, keys and values; the MLP.
    block = 6 * size + 2 * size // shared + 3 * config.intermediate_size
    return 2 * (config.num_hidden_layers * size + block)


def main(argv: list[str] | None = None) -> int:
    """Print both tables; with `--case`, the two numbers of one process."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.training.memory")
    parser.add_argument("--model", default=DEFAULT_BASE, help="embedded base, folder or hub id")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    quiet_libraries()
    if options.case:
        keep_freed_memory()
        _say(json.dumps(measure(options.model, Case(**json.loads(options.case)))))
        return 0
    for line in measured_table(options.model):
        _say(line)
    _say("", *computed_table(LLAMA_3_1_8B))
    return 0


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    end_in_order()
    torch.set_num_threads(1)
    sys.exit(main())
