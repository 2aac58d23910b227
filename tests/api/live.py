"""A real server on a loopback port, over a tiny random model and random adapters."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from safetensors.torch import save

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.api.access_log import Tracer
from finlora.api.app import app_of
from finlora.api.heads import BoundedHeads
from finlora.api.state import ServerState
from finlora.bases.spec import BaseSpec
from finlora.config import Settings

DEADLINE_SECONDS = 120
# A loop that only spins keeps the interpreter from the engine thread.
POLL_SECONDS = 0.002
MAX_MODEL_LEN = 256


class LiveServer:
    """uvicorn in a thread; `url` is where it listens."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_phase: Callable[[str], None] = lambda phase: None,
        tracer: Tracer | None = None,
    ) -> None:
        self.state = ServerState(settings, on_phase=on_phase)
        self.loop = asyncio.new_event_loop()
        # As `finlora serve` listens: see there.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        app = app_of(self.state, tracer)
        config = uvicorn.Config(app, http=BoundedHeads, log_level="error", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http")

    def start(self) -> None:
        """Serve; requests may come at once, though the engine still loads."""
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Raises what made the loading fail."""
        future = asyncio.run_coroutine_threadsafe(self.state.loaded(), self.loop)
        future.result(DEADLINE_SECONDS)

    def wait_until_idle(self) -> None:
        """Return once no request is left in the engine; TimeoutError when one stays."""
        future = asyncio.run_coroutine_threadsafe(self._idle(), self.loop)
        future.result(DEADLINE_SECONDS)

    def wait_until_busy(self) -> None:
        """Return once the engine has a request."""
        future = asyncio.run_coroutine_threadsafe(self._busy(), self.loop)
        future.result(DEADLINE_SECONDS)

    def drain(self) -> None:
        """Stop the engine while the server still listens."""
        future = asyncio.run_coroutine_threadsafe(self.state.stop(), self.loop)
        future.result(DEADLINE_SECONDS)

    def stop(self) -> None:
        """Drain and end."""
        self._server.should_exit = True
        self._thread.join(DEADLINE_SECONDS)

    async def _idle(self) -> None:
        while True:
            stats = self.state.engine.stats()
            if stats.num_running == stats.num_waiting == stats.kv_cache_usage == 0:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _busy(self) -> None:
        while not self.state.engine.stats().num_running:
            await asyncio.sleep(POLL_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._server.serve([self._listener]))


@contextmanager
def serving(settings: Settings, tracer: Tracer | None = None) -> Iterator[LiveServer]:
    """A server whose engine is loaded."""
    server = LiveServer(settings, tracer=tracer)
    server.start()
    try:
        server.wait_until_loaded()
        yield server
    finally:
        server.stop()


def register(
    folder: Path,
    spec: BaseSpec,
    name: str,
    *,
    seed: int,
    fingerprint: str | None = None,
    created: str | None = None,
    prompt_template: str | None = None,
    rank_pattern: dict[str, int] | None = None,
) -> Adapter:
    """A random adapter on the attention layers, strong enough to change the answers."""
    config: dict[str, object] = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    config |= {"r": 4, "lora_alpha": 8, "rank_pattern": rank_pattern or {}}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, shape in spec.linear_layers.items():
        if "self_attn" in module:
            key = f"base_model.model.{module}"
            a = torch.randn(4, shape.in_features, generator=generator)
            b = torch.randn(shape.out_features, 4, generator=generator)
            tensors |= {f"{key}.lora_A.weight": a * 0.3, f"{key}.lora_B.weight": b * 0.3}
    manifest = Manifest(
        base_name=spec.name,
        base_fingerprint=fingerprint or spec.fingerprint,
        tokenizer_hash=spec.tokenizer_hash,
        task="sentiment",
        labels=["negative", "positive"],
        created=created,
        prompt_template=prompt_template,
    )
    config_bytes = json.dumps(config).encode()
    return AdapterRegistry(folder).register(name, "tiny", config_bytes, save(tensors), manifest)
