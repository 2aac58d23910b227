from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from loadtest.errors import LoadTestError
from loadtest.mixes import BROKEN, UNKNOWN, Ask, Mix, asks, check_swap_storm

MODELS = ("a", "b", "c", "d")
names = st.lists(st.text("abcdef", min_size=1), min_size=1, max_size=8, unique=True)


def models(mix: Mix, count: int, **options: float) -> list[str]:
    seed, exponent = int(options.get("seed", 0)), options.get("zipf_exponent", 1.0)
    made = asks(mix, MODELS, seed=seed, zipf_exponent=exponent)
    return [ask.model for ask in islice(made, count)]


@settings(deadline=None)
@given(st.sampled_from(Mix), names, st.integers(0, 2**31))
def test_the_same_seed_asks_the_same(mix: Mix, served: list[str], seed: int) -> None:
    first, second = (list(islice(asks(mix, served, seed=seed), 40)) for _ in range(2))
    assert first == second
    assert {ask.model for ask in first if ask.refusal is None} <= set(served)


@pytest.mark.parametrize("mix", [Mix.DISTINCT, Mix.SWAP_STORM])
def test_in_turn_no_two_neighbours_share_an_adapter(mix: Mix) -> None:
    asked = models(mix, 41)
    assert all(one != other for one, other in pairwise(asked))
    assert Counter(asked[:40]) == dict.fromkeys(MODELS, 10)


def test_identical_is_one_adapter() -> None:
    assert set(models(Mix.IDENTICAL, 20)) == {"a"}


@pytest.mark.parametrize(
    ("mix", "exponent", "shares"),
    [
        (Mix.UNIFORM, 1.0, (1, 1, 1, 1)),
        (Mix.ZIPF, 1.0, (1, 1 / 2, 1 / 3, 1 / 4)),
        (Mix.ZIPF, 2.0, (1, 1 / 4, 1 / 9, 1 / 16)),
    ],
)
def test_drawn_shares_are_those_of_the_distribution(
    mix: Mix, exponent: float, shares: tuple[float, ...]
) -> None:
    count = 8000
    seen = Counter(models(mix, count, seed=3, zipf_exponent=exponent))
    expected = [count * share / sum(shares) for share in shares]
    assert chisquare([seen[name] for name in MODELS], expected).pvalue > 0.001


def test_between_bad_requests_there_is_always_a_good_one() -> None:
    asked = list(islice(asks(Mix.BAD_ADAPTERS, MODELS, broken=("torn",)), 48))
    assert all(ask.refusal is None for ask in asked[::2])
    bad = asked[1::2]
    assert {ask.refusal for ask in bad} == {UNKNOWN, BROKEN} | {ask.refusal for ask in bad}
    assert [ask for ask in bad if ask.refusal is BROKEN] == [Ask("torn", BROKEN)] * 4
    assert not {ask.model for ask in bad if ask.refusal is UNKNOWN} & {*MODELS, "torn"}


def test_a_swap_storm_needs_more_adapters_than_slots() -> None:
    check_swap_storm(5, 4)
    check_swap_storm(1, None)  # a server that does not tell its slots
    with pytest.raises(LoadTestError, match="4 adapters, 4 slots"):
        check_swap_storm(4, 4)


@pytest.mark.parametrize("mix", list(Mix))
def test_without_adapters_there_is_no_mix(mix: Mix) -> None:
    with pytest.raises(LoadTestError, match="no adapter"):
        asks(mix, ())
