"""What an administrator asks of a running engine. Every function runs on the engine's thread."""

from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from finlora.adapters.adapter import Adapter
from finlora.adapters.residency import ResidentAdapter
from finlora.engine.llm_engine import LLMEngine
from finlora.errors import AdapterConflictError


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """The adapters in memory, and the requests that run or wait, by digest."""

    residents: list[ResidentAdapter]
    num_requests: Mapping[str, int]


def report(engine: LLMEngine) -> AdapterReport:
    """Where every adapter is at this moment."""
    return AdapterReport(engine.adapters.residents(), _num_requests(engine))


def load(engine: LLMEngine, adapter: Adapter) -> Future[None]:
    """Read an adapter into RAM. Raises AdapterIncompatibleError, in the future AdapterError."""
    engine.check_takes_adapters()
    return engine.adapters.load(adapter)


def pin(engine: LLMEngine, adapter: Adapter) -> Future[None]:
    """`load`, and keep it until `unpin`. Raises AdapterConflictError too."""
    engine.check_takes_adapters()
    return engine.adapters.pin(adapter)


def unpin(engine: LLMEngine, digests: Collection[str]) -> None:
    """Let versions make room for others again."""
    for digest in digests:
        engine.adapters.unpin(digest)


def evict(engine: LLMEngine, digests: Collection[str]) -> None:
    """Take versions out of memory, all or none. Raises AdapterConflictError while one is needed."""
    num_requests = _num_requests(engine)
    for digest in digests:
        if num_requests[digest]:
            raise AdapterConflictError(
                f"{num_requests[digest]} requests use version {digest[:12]}: try again when they "
                "are done"
            )
        engine.adapters.check_evictable(digest)
    for digest in digests:
        engine.adapters.evict(digest)


def _num_requests(engine: LLMEngine) -> Counter[str]:
    return Counter(r.digest for r in engine.requests if r.digest is not None)
