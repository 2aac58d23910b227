"""Adapters a0, a1, ... for speed comparisons: rank 8 on all linear layers, small random B."""

import argparse
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK = 8
# Large enough that every adapter changes the output, small enough that the text stays text.
B_STD = 0.002
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapters(base: Path, folder: Path, count: int) -> list[Path]:
    """Write `count` PEFT folders for the base in `base`; the same call writes the same adapters."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    made = []
    for index in range(count):
        torch.manual_seed(index)
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=B_STD)
        made.append(folder / f"a{index}")
        adapted.save_pretrained(str(made[-1]))
        adapted.unload()
    return made


def main(argv: list[str] | None = None) -> int:
    """Write the adapters and print their folders."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.peers.make_adapters", description=__doc__
    )
    parser.add_argument("base", type=Path, help="transformers folder of the base")
    parser.add_argument("folder", type=Path, help="where the adapters go")
    parser.add_argument("--count", type=int, default=4)
    options = parser.parse_args(argv)
    for path in make_adapters(options.base, options.folder, options.count):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
