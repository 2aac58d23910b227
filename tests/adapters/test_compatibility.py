"""Which recorded facts are refused and which are warned about."""

from dataclasses import replace

import pytest

from finlora.adapters.adapter import LoRAConfig, Manifest, TrainingQuantization
from finlora.adapters.compatibility import check_compatible, check_limits
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization
from finlora.errors import AdapterIncompatibleError
from finlora.prompts import PromptTemplate, prompt_format_hash


def manifest_for(spec: BaseSpec, **quantization: object) -> Manifest:
    return Manifest(
        base_fingerprint=spec.fingerprint,
        tokenizer_hash=spec.tokenizer_hash,
        quantization=TrainingQuantization.model_validate({"type": "nf4"} | quantization),
    )


def test_an_adapter_trained_on_the_serving_base_is_compatible(spec: BaseSpec) -> None:
    manifest = manifest_for(spec, double_quant=True, block_size=64)

    assert check_compatible(manifest, spec, Quantization.NF4, strict=True) == []


@pytest.mark.parametrize(
    ("r", "pattern", "rank"),
    [(8, {}, 8), (4, {"q_proj": 16, "v_proj": 2}, 16), (64, {".*": 8}, 8)],
)
def test_the_rank_is_that_of_the_largest_layer(r: int, pattern: dict[str, int], rank: int) -> None:
    config = LoRAConfig(r=r, lora_alpha=8, rank_pattern=pattern)

    check_limits(config, max_loras=1, max_lora_rank=rank)
    with pytest.raises(
        AdapterIncompatibleError, match=rf"rank {rank} .*--max-lora-rank of {rank - 1}"
    ):
        check_limits(config, max_loras=1, max_lora_rank=rank - 1)
    with pytest.raises(AdapterIncompatibleError, match="--max-loras"):
        check_limits(config, max_loras=0, max_lora_rank=rank)


def test_unknown_facts_are_warned_about(spec: BaseSpec) -> None:
    warnings = check_compatible(Manifest(), spec, Quantization.NF4, strict=False)

    assert [w.split("which ")[1].split(" ")[0] for w in warnings] == [
        "base",
        "tokenizer",
        "quantisation",
    ]


def test_another_base_or_tokenizer_is_refused(spec: BaseSpec) -> None:
    manifest = manifest_for(spec)
    others = {
        "another base": replace(spec, fingerprint="0" * 64),
        "another tokenizer": replace(spec, tokenizer_hash="0" * 64),
    }

    for reason, other in others.items():
        with pytest.raises(AdapterIncompatibleError, match=f"trained on {reason}"):
            check_compatible(manifest, other, Quantization.NF4, strict=False)


def test_another_prompt_format_is_warned_about(spec: BaseSpec) -> None:
    facts = {"prompt_template": "Q: {input} A: ", "eos_token_ids": [2]}
    expected = prompt_format_hash(PromptTemplate("Q: {input} A: "), [2])
    same = manifest_for(spec).model_copy(update=facts | {"prompt_format_hash": expected})
    other = same.model_copy(update={"prompt_format_hash": "0" * 64})

    assert check_compatible(same, spec, Quantization.NF4, strict=True) == []
    warnings = check_compatible(other, spec, Quantization.NF4, strict=False)
    assert len(warnings) == 1
    assert "prompt format" in warnings[0]


@pytest.mark.parametrize(
    ("quantization", "warning"),
    [
        ({"type": "fp4"}, "trained on a fp4 base, served on nf4"),
        ({"type": "none"}, "trained on a none base, served on nf4"),
        ({"type": "unknown"}, "not recorded"),
        ({"double_quant": False}, "without double quantisation"),
        ({"block_size": 128}, "block size 128"),
    ],
)
def test_another_quantisation_is_warned_about_and_refused_when_strict(
    spec: BaseSpec, quantization: dict[str, object], warning: str
) -> None:
    manifest = manifest_for(spec, **quantization)

    assert warning in check_compatible(manifest, spec, Quantization.NF4, strict=False)[0]
    with pytest.raises(AdapterIncompatibleError, match=warning):
        check_compatible(manifest, spec, Quantization.NF4, strict=True)
