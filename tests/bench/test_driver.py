import pytest

from finlora.bench.subject import Subject
from finlora.engine.request import RequestOutput
from finlora.errors import ConfigError


def test_random_batches_take_the_adapters_in_turn(made: Subject) -> None:
    first, second = made.adapters
    works = made.driver.random_batch(5, 7, 3, [first, None, second])
    assert [work.adapter for work in works] == [first, None, second, first, None]
    assert {len(work.prompt_token_ids) for work in works} == {7}
    assert len({tuple(work.prompt_token_ids) for work in works}) == 5


def test_a_closed_loop_never_has_more_in_flight_and_does_all(made: Subject) -> None:
    seen: list[int] = []
    step = made.engine.step

    def watched() -> list[RequestOutput]:
        seen.append(made.engine.stats().num_running + made.engine.stats().num_waiting)
        return step()

    made.engine.step = watched  # type: ignore[method-assign]
    works = made.driver.random_batch(9, 8, 2, made.adapters)
    try:
        tally = made.driver.closed_loop(works, 3)
    finally:
        del made.engine.step
    assert max(seen) == 3
    assert len(tally.latencies) == 9
    assert tally.num_prompt_tokens == 9 * 8
    assert 0 < max(tally.latencies) <= tally.seconds


def test_a_loop_over_the_same_prompts_finds_them_cached(made: Subject) -> None:
    works = made.driver.random_batch(3, 16, 1, (None,))
    made.driver.closed_loop(works, 1)
    assert made.driver.closed_loop(works, 1).num_cached_tokens == 3 * 15


def test_prefill_rounds_never_come_from_the_cache(made: Subject) -> None:
    works = made.driver.random_batch(2, 16, 1, (None,))
    assert made.driver.run(works) > 0
    assert made.driver.closed_loop(works, 1).num_cached_tokens == 0


def test_decode_steps_make_one_token_for_every_sequence(made: Subject) -> None:
    times = made.driver.decode_steps(4, 8, made.adapters, warm_up=2, num_steps=6)
    assert len(times.seconds) == 6
    assert min(times.seconds) > 0
    # Eight of prompt, the token of the prefill step, two to warm up.
    assert times.contexts == [11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    made.engine.check_idle()


def test_steps_beyond_the_longest_context_are_refused(made: Subject) -> None:
    room = made.engine.max_model_len - 8 - 1
    assert len(made.driver.decode_steps(1, 8, (None,), warm_up=2, num_steps=room - 2).seconds) > 400
    with pytest.raises(ConfigError, match=r"9 tokens of context and 504 .* 512"):
        made.driver.decode_steps(1, 8, (None,), warm_up=2, num_steps=room - 1)
    made.engine.check_idle()


def test_sequences_that_went_on_during_prefill_count(made: Subject) -> None:
    """More prompts than one step takes: the first have made a token more than the last."""
    limit = made.engine.max_model_len
    with pytest.raises(ConfigError, match=r"5\d\d tokens of context"):
        made.driver.decode_steps(8, limit - 12, (None,), warm_up=1, num_steps=10)
    made.engine.check_idle()
