"""Properties of every schedule: limits hold, nothing starves, nothing is left behind."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, zip_longest

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora.adapters.adapter import Adapter
from finlora.adapters.cache import AdapterCache
from finlora.engine.batch import NO_SLOT, Batch
from finlora.engine.kv_cache import PADDING_PAGE, KVCache, KVLayout
from finlora.engine.memory import KVMemory
from finlora.engine.prefix_cache import PrefixCache
from finlora.engine.request import Request, RequestStatus
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.scheduler import MAX_OVERTAKEN, Scheduler
from finlora.engine.structured import ChoiceTree
from finlora.errors import AdapterLoadError
from tests.adapters.cache_harness import Slots, Weights, make_adapter
from tests.engine.requests import make_request

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, dtype=torch.float32)
MAX_MODEL_LEN = 32
_tokens = count(100)


class Silent:
    """An observer that keeps nothing."""

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None: ...

    def adapter_evicted(self, adapter: str, tier: str) -> None: ...

    def adapter_load_failed(self, adapter: str) -> None: ...


@dataclass
class Engine:
    """A scheduler with real caches; the model is left out: any token will do."""

    num_pages: int = 100
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    max_logits_rows: int = 8
    max_loras: int = 2
    prefix_cache: bool = True
    batches: list[Batch] = field(default_factory=list)
    on_batch: Callable[[Batch], None] = lambda batch: None
    load: Callable[[Adapter], Weights] = lambda adapter: Weights(adapter.name)

    def __post_init__(self) -> None:
        self.loaded = threading.Event()
        self.adapters: AdapterCache[Weights] = AdapterCache(
            self.load,
            Slots(borrows=False),
            max_loras=self.max_loras,
            max_bytes=1000,
            observer=Silent(),
            on_loaded=self.loaded.set,
        )
        self.kv_cache = KVCache(
            LAYOUT,
            num_bytes=self.num_pages * LAYOUT.bytes_per_token,
            max_num_seqs=self.max_num_seqs,
            max_model_len=MAX_MODEL_LEN,
            device=torch.device("cpu"),
        )
        self.memory = KVMemory(self.kv_cache, PrefixCache() if self.prefix_cache else None)
        self.scheduler = Scheduler(
            self.memory,
            self.adapters,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_logits_rows=self.max_logits_rows,
        )

    def preload(self, *names: str) -> None:
        adapters = [make_adapter(name) for name in names]
        while not all(self.adapters.is_loaded(adapter) for adapter in adapters):
            self.loaded.clear()
            self.adapters.want(adapters)
            if not all(self.adapters.is_loaded(adapter) for adapter in adapters):
                assert self.loaded.wait(10)

    def step(self) -> Batch:
        self.loaded.clear()
        batch = self.scheduler.schedule()
        if not batch.sequences and self.scheduler.waiting:
            assert self.loaded.wait(10), "nothing to run and nothing on its way"
        self.on_batch(batch)
        self.scheduler.advance(batch)
        self.memory.check_integrity()
        for request in batch.requests:
            if request.num_branches and request.num_computed_tokens == request.num_tokens:
                self.scheduler.finish(request, RequestStatus.FINISHED_STOP)
        for sequence in batch.sequences:
            request = sequence.request
            if sequence.samples and not request.num_branches:
                request.output_token_ids.append(0)
                if len(request.output_token_ids) >= request.params.max_tokens:
                    self.scheduler.finish(request, RequestStatus.FINISHED_LENGTH)
        self.batches.append(batch)
        return batch

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.waiting and not self.scheduler.running:
                break
            self.step()
        self.close()

    def close(self) -> None:
        self.adapters.close()
        self.scheduler.check_idle()
        self.memory.check_integrity(idle=True)
        self.adapters.check_idle()


def request(
    prompt_len: int, max_tokens: int, adapter: str | None = None, token_id: int | None = None
) -> Request:
    """By default a prompt that shares no beginning with any other."""
    return make_request(
        [next(_tokens) if token_id is None else token_id] * prompt_len,
        SamplingParams(temperature=0, max_tokens=max_tokens),
        adapter=None if adapter is None else make_adapter(adapter),
    )


REQUESTS = st.lists(
    st.builds(
        request,
        st.integers(1, 20),
        st.integers(1, 12),
        st.sampled_from([None, "a", "b", "c", "d", "e"]),
        st.sampled_from([1, 2, None]),  # often the same prompt, or the beginning of another
    ),
    max_size=25,
)


@settings(deadline=None)
@given(REQUESTS, st.integers(MAX_MODEL_LEN, 100), st.booleans())
def test_every_request_ends_within_the_limits(
    requests: list[Request], num_pages: int, prefix_cache: bool
) -> None:
    engine = Engine(num_pages=num_pages, prefix_cache=prefix_cache)
    for r in requests:
        engine.scheduler.add(r)
    engine.run()
    for batch in engine.batches:
        assert batch.num_tokens <= engine.max_num_batched_tokens
        assert len(batch.sequences) <= engine.max_num_seqs
        digests = {s.request.digest for s in batch.sequences} - {None}
        assert len(digests) <= engine.max_loras
        slots = {(s.request.digest, s.running.slot) for s in batch.sequences}
        assert len(slots) == len({digest for digest, _ in slots}) == len({s for _, s in slots})
        assert all((s.running.slot == NO_SLOT) == (s.request.adapter is None)
                   for s in batch.sequences)  # fmt: skip
    assert all(len(r.output_token_ids) == r.params.max_tokens for r in requests)
    assert all(r.status is RequestStatus.FINISHED_LENGTH for r in requests)


def scoring(prompt_len: int, labels: list[list[int]], adapter: str | None) -> Request:
    """A request whose labels are scored."""
    choice = ChoiceTree(labels)
    params = SamplingParams(choice=choice, max_tokens=choice.max_tokens, logprobs=0)
    record = None if adapter is None else make_adapter(adapter)
    return make_request([1] * prompt_len, params, adapter=record)


LABELS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=5, unique_by=tuple
)
SCORING = st.builds(scoring, st.integers(1, 17), LABELS, st.sampled_from([None, "a", "b", "c"]))


@settings(deadline=None)
@given(
    st.lists(SCORING, min_size=1, max_size=8),
    REQUESTS,
    st.integers(MAX_MODEL_LEN, 100),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_branch_runs_once_behind_its_own_beginning(
    scoring: list[Request],
    others: list[Request],
    num_pages: int,
    max_logits_rows: int,
    prefix_cache: bool,
) -> None:
    engine = Engine(num_pages=num_pages, max_logits_rows=max_logits_rows, prefix_cache=prefix_cache)
    for pair in zip_longest(scoring, others):
        for r in filter(None, pair):
            engine.scheduler.add(r)
    written: dict[tuple[Request, int], int] = {}  # page of each branch

    def check(batch: Batch) -> None:
        assert batch.num_tokens <= engine.max_num_batched_tokens
        assert sum(s.samples for s in batch.sequences) <= max_logits_rows
        table = engine.kv_cache.table
        for s in batch.sequences:
            choice, num_prompt = s.request.params.choice, len(s.request.prompt_token_ids)
            if not s.node or choice is None:
                continue
            path = choice.path(s.node)
            row = table[s.running.row]
            written[s.request, s.node] = row[s.start]
            assert s.start == num_prompt + len(path) - 1
            assert row[num_prompt : s.start + 1].tolist() == [written[s.request, n] for n in path]
            own = next(r.row for r in engine.scheduler.running if r.request is s.request)
            assert row[:num_prompt].tolist() == table[own, :num_prompt].tolist()
            assert (row[s.start + 1 :] == PADDING_PAGE).all()
            assert (row[: s.start + 1] != PADDING_PAGE).all()

    engine.on_batch = check
    engine.run()
    for r in scoring:
        assert r.status is RequestStatus.FINISHED_STOP
        assert {node for owner, node in written if owner is r} == set(range(1, r.num_branches + 1))
    assert all(r.status is RequestStatus.FINISHED_LENGTH for r in others)


@settings(deadline=None)
@given(REQUESTS, st.lists(st.tuples(st.integers(0, 24), st.integers(0, 10)), max_size=15))
def test_a_request_can_be_ended_at_any_stage(
    requests: list[Request], ends: list[tuple[int, int]]
) -> None:
    engine = Engine(num_pages=40)
    for r in requests:
        engine.scheduler.add(r)
    alive = set(requests)
    for index, num_steps in ends:
        for _ in range(num_steps):
            if engine.scheduler.waiting or engine.scheduler.running:
                engine.step()
        alive = {r for r in alive if not r.status.startswith("finished")}
        if index < len(requests) and requests[index] in alive:
            engine.scheduler.finish(requests[index], RequestStatus.FINISHED_ABORT)
    engine.run()


def test_decodes_come_first_and_each_part_is_sorted_by_slot() -> None:
    engine = Engine(num_pages=256, max_num_seqs=8, max_num_batched_tokens=64)
    engine.preload("a", "b")
    for name in ("b", "a", "b", None, "a"):
        engine.scheduler.add(request(3, 4, name))
    engine.step()
    engine.scheduler.add(request(3, 4, "a"))
    engine.scheduler.add(request(3, 4))
    keys = [(not s.decodes, s.running.slot) for s in engine.step().sequences]
    assert keys == sorted(keys)
    assert {many for many, _ in keys} == {False, True}
    engine.run()


def test_long_prompts_are_cut_to_the_budget_and_do_not_stop_decoding() -> None:
    engine = Engine()
    engine.scheduler.add(request(2, 10))
    engine.step()
    long = request(20, 1)
    engine.scheduler.add(long)
    batch = engine.step()
    assert [s.num_tokens for s in batch.sequences] == [1, 15]
    assert not batch.sequences[1].samples
    batch = engine.step()
    assert [s.num_tokens for s in batch.sequences] == [1, 5]
    assert batch.sequences[1].samples
    engine.run()


def test_a_short_prompt_is_never_cut() -> None:
    engine = Engine(max_num_seqs=8)
    for _ in range(4):
        engine.scheduler.add(request(4, 3))
    while engine.scheduler.waiting:
        engine.step()
        engine.scheduler.add(request(3, 3))
        if len(engine.batches) > 20:
            break
    prefills = [s for b in engine.batches for s in b.sequences if s.start == 0]
    assert len(prefills) > 10
    assert all(s.samples for s in prefills)
    engine.run()


def test_prompt_logits_have_a_budget_of_their_own() -> None:
    engine = Engine()
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    engine.scheduler.add(make_request([0] * 12, params))
    assert [s.num_tokens for s in engine.step().sequences] == [8]
    for running in list(engine.scheduler.running):
        engine.scheduler.finish(running.request, RequestStatus.FINISHED_ABORT)
    engine.close()


def test_short_memory_preempts_the_youngest_and_it_still_ends_right() -> None:
    engine = Engine(num_pages=MAX_MODEL_LEN)
    old, young = request(10, 12), request(9, 12)
    engine.scheduler.add(old)
    engine.scheduler.add(young)
    engine.run()
    assert old.num_preemptions == 0
    assert young.num_preemptions > 0
    assert len(young.output_token_ids) == 12


def test_a_request_without_a_slot_is_overtaken_but_does_not_starve() -> None:
    engine = Engine(max_num_seqs=2, max_loras=1)
    engine.preload("a", "b")
    engine.scheduler.add(request(1, 30, "a"))
    engine.step()
    unlucky = request(1, 1, "b")
    engine.scheduler.add(unlucky)
    waited = 0
    while unlucky.status is not RequestStatus.FINISHED_LENGTH:
        if len(engine.scheduler.waiting) < 3:  # an endless stream for the adapter with the slot
            engine.scheduler.add(request(1, 4, "a"))
        engine.step()
        waited += 1
        assert waited < 10 * MAX_OVERTAKEN, "starved"
    assert waited > MAX_OVERTAKEN // 4, "nobody overtook: the test shows nothing"
    engine.run()


def test_an_unloadable_adapter_ends_its_own_requests_only() -> None:
    def load(adapter: object) -> Weights:
        raise AdapterLoadError("gone")

    engine = Engine(load=load)
    lost, fine = request(3, 2, "a"), request(3, 2)
    engine.scheduler.add(lost)
    engine.scheduler.add(fine)
    failed: list[Request] = []
    while not failed:
        engine.step()
        failed = [r for r, _ in engine.scheduler.unloadable()]
    assert failed == [lost]
    engine.scheduler.finish(lost, RequestStatus.FINISHED_ERROR)
    engine.run()
    assert fine.status is RequestStatus.FINISHED_LENGTH
