"""What adapter_config.json may say."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from finlora.adapters.adapter import CONFIG_FILE, LoRAConfig
from finlora.adapters.peft_config import (
    MAX_CONFIG_BYTES,
    module_rank,
    module_scaling,
    parse_config,
)
from finlora.errors import AdapterError, AdapterLoadError

MINIMAL = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
MODULES = [f"model.layers.{i}.{m}" for i in (0, 1, 11) for m in ("self_attn.q_proj", "mlp.up_proj")]


def parse(**fields: Any) -> LoRAConfig:
    return parse_config(json.dumps(MINIMAL | fields).encode())


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "patterns"])
def test_what_peft_saves_is_accepted(peft_folders: dict[str, Path], kind: str) -> None:
    config = parse_config((peft_folders[kind] / CONFIG_FILE).read_bytes())

    assert (config.r, config.lora_alpha) == (4, 8)
    assert config.use_rslora == (kind == "rslora")
    assert config.use_dora == (kind == "dora")
    assert bool(config.rank_pattern) == (kind == "patterns")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "layers of the shared base"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole layers"),
        ({"lora_bias": True}, "LoRA biases"),
        ({"target_parameters": ["experts.w"]}, "bare parameters"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"auto_mapping": {"parent_library": "os"}}, "class to import"),
        ({"trainable_token_indices": [5]}, "embeddings"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
        ({"shiny_new_option": 3}, "shiny_new_option is set"),
        ({"r": 0}, "r: "),
        ({"r": "8"}, "r: "),
        ({"r": True}, "r: "),
        ({"lora_alpha": -1}, "lora_alpha: "),
        ({"lora_alpha": 1e9}, "lora_alpha: "),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj: "),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj: "),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterLoadError, match=reason):
        parse(**fields)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initialisations_that_change_the_base_are_refused(init: str) -> None:
    with pytest.raises(AdapterLoadError, match=f"init_lora_weights is '{init}'"):
        parse(init_lora_weights=init)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_accepted(init: object) -> None:
    assert parse(init_lora_weights=init).r == 8


def test_options_that_are_switched_off_and_facts_about_training_do_no_harm() -> None:
    config = parse(
        shiny_new_option=None,
        another={},
        modules_to_save=None,
        lora_dropout=0.1,
        target_modules="(a+)+$",
        peft_version="99",
        use_dora=None,
        rank_pattern=None,
    )

    assert config == LoRAConfig(r=8, lora_alpha=16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b" " * (MAX_CONFIG_BYTES + 1), "larger than"),
        (b'{"peft_type": "LORA", "lora_alpha": 1}', "r: Field required"),
        (b'{"peft_type": "LORA", "r": 8, "lora_alpha": NaN}', "lora_alpha: "),
    ],
)
def test_broken_files_are_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(AdapterLoadError, match=reason):
        parse_config(content)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", ".*.*.*x", "[", "x{2}", "a" * 300 + "*"])
def test_patterns_that_are_malformed_or_could_run_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(AdapterLoadError, match="pattern"):
        parse(rank_pattern={pattern: 4})


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(AdapterLoadError, match="too many entries"):
        parse(alpha_pattern={f"layers.{i}.q_proj": 4 for i in range(5000)})


@pytest.mark.parametrize(
    "patterns",
    [
        ["q_proj"],
        ["proj"],
        ["layers.1.self_attn.q_proj", "q_proj"],
        ["1.self_attn.q_proj"],
        [r".*\.layers\.1\.mlp\.up_proj"],
        ["^model.layers.0.mlp.up_proj"],
        [r"layers\.\d+\.self_attn\.q_proj|up_proj"],
        ["up_proj", "q_proj"],
    ],
)
def test_patterns_match_as_in_peft(patterns: list[str]) -> None:
    ranks = {pattern: 16 + i for i, pattern in enumerate(patterns)}
    config = LoRAConfig(r=8, lora_alpha=32, rank_pattern=ranks)

    for module in MODULES:
        assert module_rank(config, module) == ranks.get(get_pattern_key(patterns, module), 8)


def test_scaling_follows_rank_and_alpha_of_the_module() -> None:
    config = LoRAConfig(
        r=8, lora_alpha=32, rank_pattern={"q_proj": 4}, alpha_pattern={"up_proj": 2}
    )
    rslora = config.model_copy(update={"use_rslora": True})

    assert module_scaling(config, "model.layers.0.self_attn.q_proj") == 32 / 4
    assert module_scaling(config, "model.layers.0.mlp.up_proj") == 2 / 8
    assert module_scaling(rslora, "model.layers.0.self_attn.q_proj") == 32 / math.sqrt(4)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_pattern_is_refused_or_matched(pattern: str) -> None:
    try:
        config = parse(rank_pattern={pattern: 4})
    except AdapterLoadError:
        return
    expected = 4 if re.match(rf"(.*\.)?({pattern})$", MODULES[0]) else 8
    assert module_rank(config, MODULES[0]) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = ("r", "lora_alpha", "use_dora", "rank_pattern", "alpha_pattern", "bias", "task_type")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "init_lora_weights", "other"]), JSON))
def test_any_json_is_accepted_or_refused_as_an_adapter_error(fields: dict[str, Any]) -> None:
    try:
        config = parse(**fields)
    except AdapterError:
        return
    assert math.isfinite(module_scaling(config, MODULES[0]))
