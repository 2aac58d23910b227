from finlora.quality.analysis import arm_result, by_arm
from finlora.quality.findings import QualityFindings
from finlora.quality.plan import Plan
from tests.quality.trials import trial


def test_arms_that_share_no_seed_are_not_compared() -> None:
    hits = {"a": [True, False] * 20}
    seeds = {"lora-16": 0, "qlora-nf4": 0, "qlora-r4": 1, "base-16": None}
    arms = by_arm([trial(name, seed, hits) for name, seed in seeds.items()])
    found = QualityFindings(
        base="tiny",
        fingerprint="f" * 64,
        plan=Plan(),
        facts={},
        test_sets={"a": 40},
        arms=arms,
        results=[arm_result(trials) for trials in arms.values()],
        goals=[],
        origin=None,
        created="today",
    )
    accuracy, differences, _ = found.tables()
    assert len(accuracy.rows) == 4
    assert [row[0] for row in differences.rows] == ["NF4 base + QLoRA (what is served)"]
