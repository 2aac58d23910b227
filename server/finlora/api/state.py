"""What one server process holds: settings, registry, metrics and, once it is loaded, the engine.

The engine loads in a thread of its own, so that /health and /ready answer meanwhile.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_served
from finlora.adapters.shipped import open_registry
from finlora.api.facts import build_facts, limits, model_facts
from finlora.api.grammars import GrammarCache
from finlora.api.tokens import Vocabulary
from finlora.bases.imports import import_bitsandbytes
from finlora.config import Settings
from finlora.errors import (
    AdapterIncompatibleError,
    EngineError,
    EngineStoppedError,
    RequestError,
)
from finlora.metrics import Metrics
from finlora.prompts import TextEncoder

if TYPE_CHECKING:  # torch takes seconds to import: the loading thread does it
    from finlora.chat_template import ChatTemplate
    from finlora.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)


class ServerState:
    """Owns the engine from loading to its stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_phase: Callable[[str], None],
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.settings = settings
        self._on_phase = on_phase
        self._on_failure = on_failure
        self.registry = open_registry(settings)
        self.metrics = Metrics(
            CollectorRegistry(),
            max_adapters=settings.metrics_max_adapters,
            registered=self.registry,
        )
        self.metrics.watch_ready(lambda: self.ready)
        self.started = int(time.time())
        self.phase = "starting"
        self.failure: Exception | None = None
        self._engine: AsyncEngine | None = None
        self._vocabulary: Vocabulary | None = None
        self._text_encoder: TextEncoder | None = None
        self._grammars: GrammarCache | None = None
        self._loaded = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests are served."""
        return self._engine is not None and self._engine.ready

    @property
    def healthy(self) -> bool:
        """Whether waiting can help; False: only a restart does."""
        return self.failure is None and not (self._engine is not None and self._engine.failed)

    @property
    def engine(self) -> "AsyncEngine":
        """The running engine. Raises EngineStoppedError while there is none."""
        if self._engine is None:
            raise EngineStoppedError(f"the server is not ready: {self.phase}")
        return self._engine

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the base. Raises EngineStoppedError while there is no engine."""
        if self._vocabulary is None:
            raise EngineStoppedError(f"the server is not ready: {self.phase}")
        return self._vocabulary

    @property
    def text_encoder(self) -> TextEncoder:
        """Encodes labels. Raises EngineStoppedError while there is no engine."""
        if self._text_encoder is None:
            raise EngineStoppedError(f"the server is not ready: {self.phase}")
        return self._text_encoder

    @property
    def grammars(self) -> GrammarCache:
        """Compiled grammars. Raises EngineStoppedError while there is no engine."""
        if self._grammars is None:
            raise EngineStoppedError(f"the server is not ready: {self.phase}")
        return self._grammars

    @property
    def chat_template(self) -> "ChatTemplate":
        """How the base writes chats. Raises RequestError when it does not say."""
        template = self.engine.chat_template
        if template is None:
            raise RequestError(
                f"model: {self.engine.spec.name} has no chat template; use /v1/completions",
                param="model",
            )
        return template

    def report(self, phase: str) -> None:
        """Note what is being done; /ready shows it."""
        self.phase = phase
        self._on_phase(phase)

    def start(self) -> None:
        """Begin to load; call from the event loop."""
        loop = asyncio.get_running_loop()
        # A daemon: an interrupt while it loads ends the process at once.
        threading.Thread(target=self._load, args=(loop,), name="load", daemon=True).start()

    async def loaded(self) -> None:
        """Wait until the engine runs. Raises what made the loading fail."""
        await self._loaded.wait()
        if self.failure is not None:
            raise self.failure

    async def stop(self) -> None:
        """Take no more requests, give the running ones time, end the rest with an error."""
        self.phase = "stopping"
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop(self.settings.shutdown_seconds)
        grammars, self._grammars = self._grammars, None
        if grammars is not None:
            grammars.close()

    def resolve(self, model: str) -> Adapter | None:
        """The adapter that a request's model names; None for the bare base.

        Raises AdapterNotFoundError, AdapterIncompatibleError, EngineStoppedError.
        """
        base = self.engine.spec.name
        # Neither names nor digests have a colon.
        name = model.removeprefix(f"{base}:")
        if model == base:
            if self.settings.default_adapter is None:
                return None
            name = self.settings.default_adapter
        adapter = self.registry.resolve(name)
        self._check_fits(adapter)
        return adapter

    def adapters(self) -> list[Adapter]:
        """The registered adapters that this server can serve."""
        return [adapter for adapter in self.registry.current() if self._fits(adapter)]

    def _fits(self, adapter: Adapter) -> bool:
        try:
            self._check_fits(adapter)
        except AdapterIncompatibleError:
            return False
        return True

    def _check_fits(self, adapter: Adapter) -> None:
        check_served(adapter, self.engine.spec, self.settings)

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._run_engine()
        except Exception as error:
            self._fail(error)
        except BaseException as error:  # ends this thread only, so nobody else would tell of it
            self._fail(EngineError(f"loading ended with {error!r}"))
        with contextlib.suppress(RuntimeError):  # the loop is gone: the server stopped meanwhile
            loop.call_soon_threadsafe(self._loaded.set)

    def _fail(self, error: Exception) -> None:
        logger.debug("loading failed", exc_info=True)
        self.failure = error
        self.phase = "failed"  # /ready is open to everybody: it shows no reason
        self._on_failure(error)

    def _run_engine(self) -> None:
        self.report("importing the libraries")
        import_bitsandbytes()
        from finlora.engine.async_engine import AsyncEngine
        from finlora.engine.factory import build_engine
        from finlora.engine.grammar_process import CheckedCompiler
        from finlora.engine.guidance import TokenizerFacts

        settings = self.settings
        if settings.default_adapter is not None:
            self.registry.resolve(settings.default_adapter)  # a mistyped name is told at once
        engine = build_engine(settings, self.registry, self.metrics, report=self.report)
        limit = settings.max_num_waiting + settings.max_num_seqs
        running = AsyncEngine(engine, max_num_requests=limit)
        self.metrics.watch(engine.spec.name, engine.stats)
        self.metrics.describe(
            build=build_facts(), model=model_facts(engine, settings), limits=limits(settings)
        )
        self._vocabulary = Vocabulary(running.tokenizer)
        self._text_encoder = TextEncoder(running.tokenizer)
        facts = TokenizerFacts(
            running.tokenizer.to_str(), running.vocab_size, running.spec.eos_token_ids
        )
        compiler = CheckedCompiler(facts)
        self._grammars = GrammarCache(compiler.compile, compiler.close)
        running.start()
        self._engine = running
        self.phase = "ready"


def server_state(request: Request) -> ServerState:
    """The state of the server that handles the request."""
    state: ServerState = request.app.state.server
    return state
