"""The server's libraries come without torch's compiler, and bitsandbytes computes as ever."""

import subprocess
import sys

PROGRAM = """
import sys
from finlora.bases.imports import import_bitsandbytes

import_bitsandbytes()
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

import finlora.engine.factory

weight = torch.randn(64, 64)
codes, state = quantize_4bit(weight, quant_type="nf4")
assert (dequantize_4bit(codes, state) - weight).abs().max() < 0.5
assert torch.compile.__module__ == "torch"
sys.exit("torch._inductor.compile_fx" in sys.modules)
"""


def test_the_compiler_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
