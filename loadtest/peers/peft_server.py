"""What a user writes today: transformers NF4, PEFT `set_adapter` and `generate` behind a lock."""

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import PeftModel
from pydantic import BaseModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)


class Body(BaseModel):
    """The fields the comparison sends; all others are ignored."""

    model: str
    prompt: str
    max_tokens: int


class AdapterSwitcher:
    """One model that makes one adapter active at a time."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def complete(self, body: Body) -> dict[str, Any]:
        """Greedy text of exactly `max_tokens` tokens."""
        inputs = self._tokenizer(body.prompt, return_tensors="pt")
        num_prompt = inputs["input_ids"].shape[1]
        with self._lock, torch.inference_mode():
            self._model.set_adapter(body.model)
            ids = self._model.generate(
                **inputs,
                max_new_tokens=body.max_tokens,
                min_new_tokens=body.max_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )[0, num_prompt:]
        usage = {"prompt_tokens": num_prompt, "completion_tokens": len(ids)}
        return {"choices": [{"text": self._tokenizer.decode(ids)}], "usage": usage}


def load(base: Path, adapters: list[Path]) -> AdapterSwitcher:
    """Quantise the base and load every adapter under its folder's name."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=quantization, device_map="cpu"
    )
    first, *others = adapters
    adapted = PeftModel.from_pretrained(model, first, adapter_name=first.name)
    for folder in others:
        adapted.load_adapter(folder, adapter_name=folder.name)
    adapted.eval()
    return AdapterSwitcher(adapted, AutoTokenizer.from_pretrained(base))


def create_app(switcher: AdapterSwitcher) -> FastAPI:
    """The two routes that the comparison needs."""
    app = FastAPI()
    app.post("/v1/completions")(switcher.complete)
    app.get("/health")(lambda: {})
    return app


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.peers.peft_server", description=__doc__
    )
    parser.add_argument("base", type=Path, help="transformers folder of the base")
    parser.add_argument("adapters", type=Path, nargs="+", help="PEFT folders")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(argv)
    app = create_app(load(options.base, options.adapters))
    uvicorn.run(app, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
