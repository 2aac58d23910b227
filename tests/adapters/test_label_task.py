"""What a text is classified into, from a manifest or from the caller, and the probabilities."""

import math
from pathlib import Path

import pytest
from scipy.special import softmax as scipy_softmax

from finlora.adapters.adapter import Adapter, LoRAConfig, Manifest
from finlora.adapters.label_task import LabelTask, softmax
from finlora.errors import RequestError
from finlora.prompts import PromptTemplate

TEMPLATE = "News: {input}\nAnswer: "


def adapter(**manifest: object) -> Adapter:
    config = LoRAConfig(r=4, lora_alpha=8)
    return Adapter("news", "4bits_r4", "0" * 64, Path(), config, Manifest.model_validate(manifest))


def test_the_manifest_says_what_the_caller_does_not() -> None:
    own = adapter(labels=["down", "up"], prompt_template=TEMPLATE, temperature=2.0)
    assert LabelTask.of(own) == LabelTask(("down", "up"), PromptTemplate(TEMPLATE), 2.0)


def test_the_calibration_is_for_the_adapters_own_task_only() -> None:
    own = adapter(labels=["down", "up"], prompt_template=TEMPLATE, temperature=2.0)
    assert LabelTask.of(own, labels=["up", "flat"]).temperature == 1
    assert LabelTask.of(own, labels=["up"]).temperature == 1
    assert LabelTask.of(own, template=PromptTemplate("{input}")).temperature == 1
    assert LabelTask.of(own, labels=["down", "up"]).temperature == 2


def test_the_order_of_the_labels_does_not_change_their_probabilities() -> None:
    own = adapter(labels=["down", "up"], prompt_template=TEMPLATE, temperature=2.0)
    down, up = LabelTask.of(own).probabilities([-1.0, -3.0])
    turned = LabelTask.of(own, labels=["up", "down"])
    assert turned.labels == ("up", "down")
    assert turned.probabilities([-3.0, -1.0]) == pytest.approx([up, down])


def test_what_nobody_says_is_refused() -> None:
    with pytest.raises(RequestError, match="labels: the base") as missing:
        LabelTask.of(None, template=PromptTemplate(TEMPLATE))
    assert missing.value.param == "labels"
    with pytest.raises(RequestError, match="template: news"):
        LabelTask.of(adapter(labels=["down", "up"]))


def test_probabilities_are_tempered_and_add_up() -> None:
    logprobs = [-1.0, -3.0, -900.0]
    task = LabelTask(("a", "b", "c"), PromptTemplate(TEMPLATE), 2.0)
    expected = scipy_softmax([value / 2 for value in logprobs])
    assert task.probabilities(logprobs) == pytest.approx(list(expected))
    assert math.fsum(softmax([-2000.0, -2001.0])) == pytest.approx(1)
