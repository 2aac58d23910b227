from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight
from transformers import PreTrainedTokenizerFast

from finlora.datasets.rows import Row
from finlora.errors import ConfigError
from finlora.training.batches import ExampleEncoder
from finlora.training.config import DataSource, TrainingConfig
from finlora.training.preparation import answer_weights, encode_rows, load_dataset
from tests.training.rows import LABELS, make_rows, write_rows

UNEVEN = [
    row for i, row in enumerate(make_rows()) if row.target == "neutral" or i % 6 == 0 or i % 9 == 2
]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    answers = [row.target for row in UNEVEN]
    weights = answer_weights(UNEVEN, TrainingConfig(class_weights="balanced"))
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=answers)
    assert [weights[label] for label in LABELS] == pytest.approx(list(expected))
    assert len(set(weights.values())) > 1
    assert answer_weights(UNEVEN, TrainingConfig()) == {}


def test_weights_of_ones_own_reach_the_examples(fast: PreTrainedTokenizerFast) -> None:
    config = TrainingConfig(class_weights={"negative": 3.0})
    weights = answer_weights(UNEVEN, config)
    examples = encode_rows(UNEVEN, ExampleEncoder(fast, 2), 512, weights)
    for row, whole, stripped in zip(UNEVEN, examples.whole, examples.stripped, strict=True):
        expected = 3.0 if row.target == "negative" else 1.0
        assert whole.weight == stripped.weight == expected
    with pytest.raises(ConfigError, match="no row has the answer 'bad'"):
        answer_weights(UNEVEN, TrainingConfig(class_weights={"bad": 1.0}))


def test_balanced_sampling_draws_every_label_as_often(fast: PreTrainedTokenizerFast) -> None:
    rows = [row for row in make_rows() if row.target != "positive"]
    rows = [*rows, *(Row(f"{i}{row.context}", "neutral") for i in range(20) for row in rows)]
    examples = encode_rows(rows, ExampleEncoder(fast, 2), 512)
    config = TrainingConfig(balanced_sampling=True)
    neutral = ExampleEncoder(fast, 2).encode_target("neutral")
    drawn = Counter(e.target == neutral for n in range(4) for e in examples.of_epoch(n, config))
    assert sum(drawn.values()) == 4 * len(rows)
    assert drawn[True] / sum(drawn.values()) == pytest.approx(0.5, abs=0.05)
    assert examples.of_epoch(1, config) == examples.of_epoch(1, config)


def test_rows_too_long_are_left_out_whole(fast: PreTrainedTokenizerFast) -> None:
    rows = [*make_rows()[:3], Row("word " * 200, "neutral")]
    examples = encode_rows(rows, ExampleEncoder(fast, 2), 100)
    assert (len(examples.whole), examples.num_too_long) == (3, 1)
    assert examples.rows == rows[:3]


def test_the_report_counts_labels_on_both_sides_and_contradictions(tmp_path: Path) -> None:
    rows = make_rows()
    write_rows(tmp_path / "rows.jsonl", [*rows, Row(rows[0].context, "neutral")])
    config = TrainingConfig(dataset_path=["rows.jsonl"], val_fraction=0.3)
    dataset = load_dataset(config, tmp_path)
    counts = dataset.label_counts()
    for label in LABELS:
        assert sum(counts[label].values()) == 12
    assert sum(sides["valid"] for sides in counts.values()) == len(dataset.split.valid)
    assert (dataset.split.num_duplicates, dataset.split.num_contradictions) == (1, 1)


@pytest.mark.parametrize(
    "fields", [{"text_column": "a"}, {"text_column": "a", "label_column": "b"}]
)
def test_columns_need_each_other_and_a_template(tmp_path: Path, fields: dict[str, str]) -> None:
    write_rows(tmp_path / "rows.jsonl")
    config = TrainingConfig.model_validate({"dataset_path": "rows.jsonl", **fields})
    with pytest.raises(ConfigError, match="go together"):
        load_dataset(config, tmp_path)


def test_who_the_rows_are_from_is_read_from_beside_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    note = tmp_path / "rows.jsonl.sources.json"
    note.write_text('[{"name": "A", "licence": "MIT", "url": null}]')
    config = TrainingConfig(dataset_path=["rows.jsonl"], val_fraction=0.3)
    assert load_dataset(config, tmp_path).origins == [DataSource(name="A", licence="MIT")]
    own = [DataSource(name="B", licence="CC0")]
    assert load_dataset(config.model_copy(update={"sources": own}), tmp_path).origins == own
    note.write_text("[{}]")
    with pytest.raises(ConfigError, match="broken"):
        load_dataset(config, tmp_path)
