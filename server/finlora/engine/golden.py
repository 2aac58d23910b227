"""The check before the server says it is ready: the serving path computes what the model means.

The reference is this machine's own: transformers' attention over the layers as they were loaded,
before packing. It catches layers broken by packing, a wrong kernel, a wrong attention.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finlora.bases.spec import BaseSpec
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import BaseModelError, ConfigError

logger = logging.getLogger(__name__)

NUM_TOKENS = 24
# Packed layers keep their block scales in bf16 and differ from unpacked ones by 0.3 % a layer; the
# log-probabilities of real models then differ by about 0.1. A broken layer costs whole units.
MAX_MEAN_DIFFERENCE = 0.5


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """A token sequence and its log-probabilities under the model as loaded."""

    token_ids: list[int]
    logprobs: list[float]  # of token_ids[1:]

    @classmethod
    def record(cls, model: PreTrainedModel, spec: BaseSpec) -> "GoldenCheck":
        """Run the reference; call it before `pack`."""
        # Spread over the vocabulary, no special ids needed: any text would do.
        step = max(model.config.get_text_config().vocab_size // (NUM_TOKENS + 1), 1)
        vocabulary = model.config.get_text_config().vocab_size
        token_ids = [(step * (i + 1)) % vocabulary for i in range(NUM_TOKENS)]
        ids = torch.tensor([token_ids], device=model.device)
        switches = _switch_packing_off(model)
        try:
            with torch.inference_mode():
                logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
        finally:
            for layer, was in switches:
                layer.support_avx512bf16_for_cpu = was  # type: ignore[assignment]
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return cls(token_ids, chosen.tolist())

    def verify(self, engine: LLMEngine) -> None:
        """Run the same tokens through the engine.

        Raises BaseModelError when they disagree, ConfigError when the engine has no room for them.
        """
        if engine.max_model_len < NUM_TOKENS:
            raise ConfigError(
                f"max_model_len is {engine.max_model_len}: with less than {NUM_TOKENS} the engine "
                "cannot even check itself"
            )
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)
        output = _run(engine, self.token_ids, params)
        served = [entry.logprob for entry in output.prompt_logprobs or () if entry is not None]
        pairs = zip(served, self.logprobs, strict=True)
        difference = sum(abs(a - b) for a, b in pairs) / len(self.logprobs)
        logger.info("golden check: log-probabilities differ by %.4f in the mean", difference)
        if not difference <= MAX_MEAN_DIFFERENCE:  # NaN must fail too
            raise BaseModelError(
                f"the serving path disagrees with the model (mean difference {difference:.3f} of "
                "log-probabilities): it must not serve"
            )


def _switch_packing_off(model: PreTrainedModel) -> list[tuple[torch.nn.Module, bool]]:
    """Keep the reference run from packing the layers; what to restore afterwards."""
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    switches = [(layer, bool(layer.support_avx512bf16_for_cpu)) for layer in layers]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return switches


def _run(engine: LLMEngine, token_ids: list[int], params: SamplingParams) -> RequestOutput:
    engine.add_request(engine.make_request("golden-check", token_ids, params))
    while True:
        for output in engine.step():
            if output.error is not None:
                raise BaseModelError(f"the model does not run: {output.error}")
            if output.finish_reason is not None:
                return output
