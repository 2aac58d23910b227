import numpy as np
import pytest

from finlora.quality.analysis import arm_result, by_arm, difference, mean_of
from finlora.quality.experiment import Measured
from finlora.quality.goals import goals
from tests.quality.trials import drawn, trial

SETS = ("a", "b")
WELL = [True] * 300 + [False] * 100
HURT = [False] * 40 + WELL[40:]


def three_seeds(arms: dict[str, list[bool]]) -> dict[str, list[Measured]]:
    """Arms that answer set `a` like this with every seed."""
    return by_arm([trial(name, s, {"a": hits}) for name, hits in arms.items() for s in range(3)])


def test_one_seed_gives_the_interval_of_a_proportion() -> None:
    block = np.array([drawn(400, 0.7, 1)], dtype=np.float64)
    found = mean_of([block])
    spread = np.sqrt(block.mean() * (1 - block.mean()) / 400)
    assert found.value == pytest.approx(block.mean())
    assert found.low == pytest.approx(found.value - 1.96 * spread, abs=0.25 * spread)
    assert found.high == pytest.approx(found.value + 1.96 * spread, abs=0.25 * spread)


def test_seeds_that_differ_make_it_wider() -> None:
    same = np.tile(np.array(drawn(400, 0.7, 1), dtype=np.float64), (3, 1))
    apart = np.stack([np.array(drawn(400, p, 1), dtype=np.float64) for p in (0.5, 0.7, 0.9)])
    narrow, wide = mean_of([same]), mean_of([apart])
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_every_row_weighs_the_same() -> None:
    blocks = [np.ones((1, 30)), np.zeros((1, 10))]
    assert mean_of(blocks).value == pytest.approx(0.75)


def test_differences_are_paired_by_seed() -> None:
    old = [trial("lora-16", s, {n: drawn(60, 0.7, s) for n in SETS}) for s in (0, 1, 2)]
    new = [trial("qlora-nf4", t.trial.seed, {n: o.hits for n, o in t.outcomes.items()})
           for t in old]  # fmt: skip
    found = difference(new[::-1], old, SETS)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="no seed"):
        difference(new[:1], old[1:], SETS)


def test_an_arm_without_seeds_is_the_same_in_every_one() -> None:
    base = trial("base-16", None, {"a": [True, False] * 20})
    new = [trial("qlora-nf4", s, {"a": [True] * 40}) for s in (0, 1)]
    assert difference(new, [base], ["a"]).value == pytest.approx(0.5)


def test_results_of_an_arm() -> None:
    hits = {"a": [True] * 30, "b": [True] * 5 + [False] * 5}
    found = arm_result([trial("qlora-nf4", 0, hits)])
    assert found.accuracy.value == pytest.approx(35 / 40)
    assert found.by_set["b"].value == pytest.approx(0.5)
    assert found.macro_f1["a"] == 1


def test_goals_that_are_reached() -> None:
    arms = three_seeds({"lora-16": WELL, "qlora-nf4": WELL, "lora-16-on-nf4": HURT})
    found = goals(arms, ["a"], {"same": 200, "rows": 200}, 0.26)
    assert [goal.verdict for goal in found] == ["reached"] * 4
    assert "100 %" in found[1].found


def test_goals_that_are_not() -> None:
    arms = three_seeds({"lora-16": WELL, "qlora-nf4": HURT, "lora-16-on-nf4": HURT})
    found = goals(arms, ["a"], {"same": 190, "rows": 200}, 0.31)
    assert [goal.verdict for goal in found] == ["not reached"] * 4


def test_another_start_has_goals_of_its_own() -> None:
    arms = three_seeds(
        {"lora-16": WELL, "qlora-nf4": HURT, "lora-16-on-nf4": HURT, "qlora-qera": WELL}
    )
    found = goals(arms, ["a"], None, None)
    others = [goal.verdict for goal in found if "quantisation error" in goal.what]
    assert others == ["reached"] * 2
    assert [goal.verdict for goal in found if "NF4 + QLoRA minus" in goal.what] == ["not reached"]


def test_only_seeds_of_both_arms_count() -> None:
    old = [trial("lora-16", 0, {"a": WELL})]
    new = [trial("qlora-nf4", seed, {"a": WELL}) for seed in range(3)]
    (goal, *_) = goals(by_arm([*old, *new]), ["a"], None, None)
    assert (goal.verdict, goal.found) == ("open", "+0.0 (+0.0 to +0.0) points, 1 seed")
    (goal, *_) = goals(by_arm([*old * 3, *new[:1] * 3]), ["a"], None, None)
    assert "1 seed" in goal.found
    apart = by_arm([*old, *new[1:], trial("lora-16-on-nf4", 2, {"a": HURT})])
    assert {goal.found for goal in goals(apart, ["a"], None, None)} == {"not measured"}


def test_goals_that_nobody_can_tell() -> None:
    nothing = goals({}, ["a"], None, None)
    assert {goal.verdict for goal in nothing} == {"open"}
    rows = {"a": [True, False] * 100}
    one_seed = by_arm([trial(n, 0, rows) for n in ("lora-16", "qlora-nf4", "lora-16-on-nf4")])
    found = goals(one_seed, ["a"], None, None)
    assert found[0].verdict == "open"  # three seeds are asked for
    assert "no loss" in found[1].found
