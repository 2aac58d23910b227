import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from finlora.evaluation.paired_test import PairedTest, compare


@given(st.integers(0, 300), st.integers(0, 300))
def test_p_is_that_of_the_exact_binomial_test(gained: int, lost: int) -> None:
    test = PairedTest(1000, gained, lost)
    expected = binomtest(lost, gained + lost).pvalue if gained + lost else 1.0
    assert test.p_value == pytest.approx(expected)


def test_rows_that_both_or_neither_have_right_do_not_count() -> None:
    new = [True, True, False, False, True]
    old = [True, False, True, False, False]
    assert compare(new, old) == PairedTest(num_rows=5, num_gained=2, num_lost=1)


def test_worse_needs_both_direction_and_significance() -> None:
    assert PairedTest(200, 2, 12).is_worse
    assert not PairedTest(200, 12, 2).is_worse
    assert not PairedTest(200, 2, 6).is_worse


def test_rows_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([True], [])
