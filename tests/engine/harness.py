"""A real engine over a given base, whose logits the tests can see."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry
from torch import Tensor

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.batch import Batch
from finlora.engine.factory import assemble
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.model_runner import BatchLogits, ModelRunner
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.metrics import Metrics
from finlora.model import LoadedBase

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def register(registry: AdapterRegistry, folders: Mapping[str, Path]) -> dict[str, Adapter]:
    """Put PEFT folders into a registry as they are."""
    return {name: register_folder(registry, name, folder) for name, folder in folders.items()}


def register_folder(registry: AdapterRegistry, name: str, folder: Path) -> Adapter:
    """One PEFT folder as the next version of a name."""
    config = (folder / "adapter_config.json").read_bytes()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    return registry.register(name, "test", config, weights, Manifest())


class Recorder:
    """Stands in front of the runner and keeps the logits of every sampled position."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.logits: dict[str, list[Tensor]] = defaultdict(list)
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> BatchLogits:
        result = self._runner.run(batch)
        self.batches.append(batch)
        sampling = [s for s in batch.sequences if s.samples]
        for sequence, row in zip(sampling, result.next_token, strict=True):
            self.logits[sequence.request.request_id].append(row.clone())
        return result

    def clear(self) -> None:
        """Forget what was recorded."""
        self.logits.clear()
        self.batches.clear()


class EngineUnderTest:
    """The engine, its recorder, and a way to run prompts to their end."""

    def __init__(self, base: LoadedBase, registry: AdapterRegistry, **settings: object) -> None:
        chosen = {"max_num_seqs": 16, "max_model_len": 256, "kv_cache_bytes": 16 << 20, **settings}
        self.engine: LLMEngine = assemble(
            base,
            Settings(**chosen),  # type: ignore[arg-type]
            registry,
            Metrics(CollectorRegistry()),
        )
        self.recorder = Recorder(self.engine._runner)
        self.engine._runner = self.recorder  # type: ignore[assignment]
        self.tokenizer = base.tokenizer.backend_tokenizer
        self._num_requests = 0
        self._loaded = threading.Event()
        self.engine.adapters.on_loaded = self._loaded.set

    def add(
        self,
        prompt: list[int],
        adapter: Adapter | None = None,
        params: SamplingParams = GREEDY,
        *,
        cache_salt: str = "",
    ) -> str:
        """Queue a prompt."""
        request_id = f"r{self._num_requests}"
        self._num_requests += 1
        request = self.engine.make_request(
            request_id, prompt, params, adapter=adapter, cache_salt=cache_salt
        )
        self.engine.add_request(request)
        return request_id

    def finish(self) -> dict[str, RequestOutput]:
        """Step until nothing is left; the last output of every request."""
        outputs: dict[str, RequestOutput] = {}
        while self.engine.has_requests:
            for output in self.step():
                assert output.error is None, output.error
                outputs[output.request_id] = output
        return outputs

    def step(self) -> list[RequestOutput]:
        """One step; when there was nothing to run, wait for the adapter on its way."""
        self._loaded.clear()
        outputs = self.engine.step()
        if self.engine.last_step_was_idle and self.engine.has_requests:
            assert self._loaded.wait(30)
        return outputs

    def finish_one(
        self, prompt: list[int], adapter: Adapter | None, params: SamplingParams
    ) -> RequestOutput:
        """One request on its own, to its end."""
        request_id = self.add(prompt, adapter, params)
        return self.finish()[request_id]

    def run(
        self,
        rows: Iterable[tuple[list[int], Adapter | None]],
        params: SamplingParams = GREEDY,
        *,
        cache_salt: str = "",
    ) -> list[tuple[tuple[int, ...], list[Tensor]]]:
        """Rows in one go: output tokens and the logits each was taken from."""
        ids = [self.add(prompt, adapter, params, cache_salt=cache_salt) for prompt, adapter in rows]
        outputs = self.finish()
        return [(outputs[i].token_ids, self.recorder.logits[i]) for i in ids]

    def warm(self, adapters: Iterable[Adapter]) -> None:
        """Bring adapters into RAM, so that the next rows start in the same step."""
        for adapter in adapters:
            self.run([([1, 2, 3], adapter)], SamplingParams(max_tokens=1))

    def close(self) -> None:
        """Check that nothing is left behind."""
        self.finish()
        self.engine.check_idle()
        self.engine.close()
