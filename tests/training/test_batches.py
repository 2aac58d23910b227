import random

import torch
from transformers import PreTrainedTokenizerFast

from finlora.datasets.rows import Row
from finlora.prompts import encode_prompt
from finlora.training.batches import (
    Example,
    ExampleEncoder,
    by_length,
    collate,
    length_grouped,
    micro_batches,
)
from finlora.training.packing import Packing
from tests.training.rows import make_rows

CPU = torch.device("cpu")
EOS = 2


def test_context_and_target_are_tokenised_apart(fast: PreTrainedTokenizerFast) -> None:
    row = Row("Answer: ", "positive")
    example = ExampleEncoder(fast, EOS).encode(row)
    assert example.context == encode_prompt(fast, row.context)
    apart = fast.encode("positive", add_special_tokens=False)
    assert example.target == [*apart, EOS]
    # Were they one string, the space would go to the answer's first token.
    together = fast.encode("Answer: positive", add_special_tokens=False)
    assert example.context + apart != together


def test_stripped_context_loses_only_its_trailing_space(fast: PreTrainedTokenizerFast) -> None:
    row = make_rows()[0]
    encoder = ExampleEncoder(fast, EOS)
    assert encoder.encode_stripped(row).context == encode_prompt(fast, row.context[:-1])
    assert encoder.encode_stripped(row).target == encoder.encode(row).target


def test_control_tokens_in_a_target_are_plain_text(fast: PreTrainedTokenizerFast) -> None:
    example = ExampleEncoder(fast, EOS).encode(Row("Answer: ", "up<|im_end|>"))
    assert example.target.count(EOS) == 1


def test_batches_hold_every_example_once_and_are_reproducible() -> None:
    examples = [Example([1] * (1 + i % 7), [i]) for i in range(50)]
    batches = length_grouped(examples, 8, random.Random(3))
    assert sorted(e.target[0] for batch in batches for e in batch) == list(range(50))
    assert batches == length_grouped(examples, 8, random.Random(3))
    assert batches != length_grouped(examples, 8, random.Random(4))
    longest_minus_shortest = [
        max(e.num_tokens for e in b) - min(e.num_tokens for e in b) for b in batches
    ]
    assert sum(longest_minus_shortest) <= 7


def test_by_length_holds_every_index_once() -> None:
    examples = [Example([1] * (1 + i % 5), [1]) for i in range(23)]
    assert sorted(i for batch in by_length(examples, 4) for i in batch) == list(range(23))


def test_collate_points_at_what_predicts_each_target() -> None:
    examples = [
        Example([5, 6, 7, 8, 9, 10], [20, 21]),
        Example([5, 6, 7, 8, 11], [22, 21]),
        Example([5, 6, 7, 8, 12, 13, 14], [23]),
    ]
    batch = collate(examples, CPU)
    assert batch.packing == Packing(4, (3, 2, 3))
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 20, 11, 22, 12, 13, 14]
    assert batch.packing.positions(CPU).tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 5, 4, 5, 6]]
    assert batch.positions.tolist() == [5, 6, 7, 8, 11]
    assert batch.targets.tolist() == [20, 21, 22, 21, 23]
    assert batch.rows.tolist() == [0, 0, 1, 1, 2]
    assert batch.num_tokens == 8 + 7 + 8


def test_equal_contexts_keep_a_token_to_predict_from() -> None:
    batch = collate([Example([5, 6, 7, 8, 9], [20]), Example([5, 6, 7, 8, 9], [21])], CPU)
    assert batch.packing.num_shared == 4
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 9]
    assert batch.positions.tolist() == [4, 5]


def test_a_single_row_shares_nothing() -> None:
    batch = collate([Example([5, 6, 7, 8, 9], [20])], CPU)
    assert batch.packing == Packing(0, (5,))
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]


def test_a_batch_is_computed_in_parts_of_like_size() -> None:
    def parts(num_rows: int, shared: int, own: int) -> list[int]:
        rows = [Example([5] * shared + [i] * own, [6]) for i in range(num_rows)]
        batch = micro_batches(rows, CPU)
        assert [row for part in batch for row in part] == rows
        return [len(part) for part in batch]

    assert parts(16, 20, 20) == [16]
    assert parts(16, 20, 70) == [8, 8]  # 20 + 16 * 71 > 1024
    assert parts(16, 0, 80) == [8, 8]
    assert parts(5, 0, 400) == [2, 2, 1]
    assert parts(2, 0, 2000) == [1, 1]
    assert len(micro_batches([Example([5] * 900, [6])] * 16, torch.device("cuda"))) == 1
