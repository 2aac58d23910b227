import json
from typing import Any

import pytest

from loadtest.answers import classification_fault, completion_fault


def classified(**probabilities: Any) -> bytes:
    return json.dumps({"data": [{"probabilities": probabilities}]}).encode()


def test_a_completion_has_the_tokens_that_were_asked_for() -> None:
    answer = json.dumps({"usage": {"completion_tokens": 4}}).encode()
    assert completion_fault(answer, 4) is None
    assert completion_fault(answer, 8) == "4 tokens instead of 8"


def test_probabilities_are_of_every_label_and_add_up() -> None:
    assert classification_fault(classified(negative=0.2, neutral=0.5, positive=0.3)) is None
    for wrong in (
        classified(negative=0.2, neutral=0.8),
        classified(negative=0.2, neutral=0.5, positive=0.2),
    ):
        assert classification_fault(wrong) == "no probabilities of the labels"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"data": [], "usage": 1}'])
def test_what_is_no_answer_is_told(content: bytes) -> None:
    assert completion_fault(content, 1) == "no completion"
    assert classification_fault(content) == "no classification"


@pytest.mark.parametrize("probabilities", [None, [0.5, 0.5], "all"])
def test_probabilities_of_another_form_are_none(probabilities: Any) -> None:
    content = json.dumps({"data": [{"probabilities": probabilities}]}).encode()
    assert classification_fault(content) is not None
