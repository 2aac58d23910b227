"""The tree of labels: what may follow, what must, and sums over its nodes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import END, ChoiceTree, NodeScores, normalised
from finlora.errors import InvalidSamplingParamsError

TOKENS = st.integers(0, 3)  # few, so that labels begin alike and begin each other
LABELS = st.lists(
    st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=12, unique_by=tuple
)


@given(LABELS)
def test_the_paths_through_the_tree_are_the_labels(labels: list[list[int]]) -> None:
    tree = ChoiceTree(labels)
    found = []

    def walk(node: int, tokens: list[int]) -> None:
        assert tree.node_after(tokens) == node
        assert [tree.token_id(n) for n in tree.path(node)] == tokens
        for token_id in tree.allowed(node):
            if token_id == END:
                found.append(tokens)
            else:
                walk(tree.child(node, token_id), [*tokens, token_id])

    walk(0, [])
    assert sorted(found) == sorted(labels)


@given(LABELS)
def test_every_beginning_is_one_node_and_parents_come_first(labels: list[list[int]]) -> None:
    tree = ChoiceTree(labels)
    beginnings = {tuple(label[:n]) for label in labels for n in range(1, len(label) + 1)}
    assert tree.num_branches == len(beginnings)
    for node in range(1, tree.num_branches + 1):
        assert tree.path(node) == sorted(tree.path(node))
        assert tree.path(node)[-1] == node
    assert tree.max_tokens == max(map(len, labels)) + 1


@given(LABELS, st.data())
def test_forced_tokens_are_those_that_all_labels_left_agree_on(
    labels: list[list[int]], data: st.DataObject
) -> None:
    tree = ChoiceTree(labels)
    label = data.draw(st.sampled_from(labels))
    start = data.draw(st.integers(0, len(label)))
    left = [[*other[start:], END] for other in labels if other[:start] == label[:start]]
    agreed = 0
    while all(len(rest) > agreed and rest[agreed] == left[0][agreed] for rest in left):
        agreed += 1
    assert tree.forced(tree.node_after(label[:start])) == left[0][:agreed]


@given(LABELS, st.randoms(use_true_random=False))
def test_labels_of_a_whole_vocabulary_add_up(labels: list[list[int]], random: object) -> None:
    """With probabilities that add up at each node, the labels' do too."""
    tree = ChoiceTree(labels)
    scores = []
    for node in range(tree.num_branches + 1):
        weights = [random.random() + 0.01 for _ in tree.allowed(node)]  # type: ignore[attr-defined]
        logprobs = tuple(math.log(weight / sum(weights)) for weight in weights)
        scores.append(NodeScores(logprobs, logprobs))
    sums = tree.label_logprobs(scores)
    assert math.fsum(map(math.exp, sums)) == pytest.approx(1)
    for label, total in zip(labels, sums, strict=True):
        nodes = [tree.node_after(label[:n]) for n in range(len(label) + 1)]
        followers = [*label, END]
        steps = [
            scores[node].logprobs[tree.allowed(node).index(token_id)]
            for node, token_id in zip(nodes, followers, strict=True)
        ]
        assert total == pytest.approx(sum(steps))


@given(st.lists(st.floats(-5000, 0), min_size=1, max_size=20))
def test_normalised_probabilities_add_up_to_one(logprobs: list[float]) -> None:
    values = normalised(logprobs)
    assert math.fsum(map(math.exp, values)) == pytest.approx(1)
    assert [a - b for a, b in zip(values, logprobs, strict=True)] == pytest.approx(
        [values[0] - logprobs[0]] * len(values)
    )


def test_what_cannot_be_at_all_stays_so() -> None:
    assert normalised([-math.inf, -math.inf]) == [-math.inf, -math.inf]
    assert normalised([-math.inf, -3.0]) == [-math.inf, 0.0]


@pytest.mark.parametrize("labels", [[], [[]], [[1], []], [[1, 2], [3], [1, 2]]])
def test_no_labels_empty_ones_and_twins_are_refused(labels: list[list[int]]) -> None:
    with pytest.raises(InvalidSamplingParamsError) as refusal:
        ChoiceTree(labels)
    assert refusal.value.param == "choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 2}, "max_tokens"),
        ({"stop": ("a",)}, "stop"),
        ({"stop_token_ids": (5,)}, "stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_nothing_else_may_end_a_label(fields: dict[str, object], param: str) -> None:
    choice = ChoiceTree([[1, 2], [3]])
    assert SamplingParams(choice=choice, max_tokens=3).choice is choice
    with pytest.raises(InvalidSamplingParamsError) as refusal:
        SamplingParams(choice=choice, **fields)  # type: ignore[arg-type]
    assert refusal.value.param == param
