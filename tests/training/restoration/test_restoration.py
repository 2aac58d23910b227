"""From a tiny base and some text to an adapter that the engine serves."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finlora.adapters.peft_config import parse_config
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import parse_weights
from finlora.config import Quantization
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import ConfigError, FinLoRAError
from finlora.model import LoadedBase, load_base
from finlora.training.cli import main
from finlora.training.restoration.fidelity import ORIGINAL, fidelities
from finlora.training.restoration.moments import input_moments
from finlora.training.restoration.order import RestorationOrder
from finlora.training.restoration.pair import Pair, load_pair
from finlora.training.restoration.restoration import Restoration
from tests.engine.harness import EngineUnderTest
from tests.tiny_models import tokenizer

LENGTH = 32


@pytest.fixture
def pair(base_folder: Path) -> Pair:
    return load_pair(str(base_folder), rank=4, seed=0, device="cpu")


def sequences(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (2, LENGTH), generator=generator) for _ in range(2)]


def test_moments_are_of_what_the_layers_are_given(
    load: Callable[..., LoadedBase],
) -> None:
    base = load(Quantization.NONE)
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = base.model.get_submodule(name).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].flatten(0, -2))
    )
    with torch.no_grad():
        for ids in sequences(0):
            base.model(input_ids=ids)
    hook.remove()
    found = {g.names: m for g, m in input_moments(base, base.spec.linear_layers, sequences(0))}
    rows = torch.cat(seen)
    torch.testing.assert_close(found[(name,)], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    layers = {n for names in found for n in names}
    assert layers == set(base.spec.linear_layers)
    assert ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") in found


def test_fidelity_follows_its_definitions(pair: Pair) -> None:
    ids = sequences(1)
    found = fidelities(pair, {"student": lambda: None}, ids)
    whole = torch.cat(ids)
    with torch.no_grad():
        teacher = pair.teacher.model(input_ids=whole).logits.double().log_softmax(-1)
        student = pair.student.model(input_ids=whole).logits.double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    assert found["student"].kl == pytest.approx(kl.mean().item(), rel=1e-3)
    loss = torch.nn.functional.nll_loss(student[:, :-1].flatten(0, 1), whole[:, 1:].flatten())
    assert found["student"].perplexity == pytest.approx(math.exp(loss.item()), rel=1e-3)
    assert found[ORIGINAL].kl == pytest.approx(0, abs=1e-6)
    assert found[ORIGINAL].agreement == 1
    assert found["student"].kl > 0.01


def test_a_restored_base_is_nearer_to_the_original_and_is_served(
    base_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, figures = tmp_path / "registry", tmp_path / "figures.json"
    given = ["restored", "--method", "restore", "--text", str(text_file), "--rank", "16,4"]
    given += ["--base-model", str(base_folder), "--registry", str(registry), "--device", "cpu"]
    given += ["--num-steps", "12", "--length", str(LENGTH), "--json", str(figures)]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "| NF4 + restore, r 16 |" in shown.out
    variants = json.loads(figures.read_text())["variants"]
    bare, start, learned = (
        variants[name]["kl"] for name in ("NF4", "NF4 + closed form, r 16", "NF4 + restore, r 16")
    )
    assert learned < start < bare
    assert variants["NF4 + closed form, r 4"]["kl"] > start
    adapters = AdapterRegistry(registry)
    adapter = adapters.resolve("restored-r16")
    assert adapter.manifest.task == "restoration"
    assert adapter.manifest.scores is not None
    assert adapter.manifest.scores["kl"] == learned
    _check_served(base_folder, adapters)


def _check_served(folder: Path, registry: AdapterRegistry) -> None:
    """The engine's log-probabilities with the adapter are nearer to those of the 16-bit model."""
    text = "Profit of company 777 rose by 5 percent; demand fell in quarter 3."
    ids = tokenizer().backend_tokenizer.encode(text).ids
    original = load_base(
        str(folder), Quantization.NONE, device="cpu", dtype=torch.float32, training=True
    ).model
    with torch.no_grad():
        rows = original(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    right = rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    base = load_base(str(folder), Quantization.NF4, device="cpu", dtype=torch.float32)
    under_test = EngineUnderTest(base, registry, max_lora_rank=16)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)
    distances = []
    for adapter in (None, registry.resolve("restored-r16")):
        output = under_test.finish_one(ids, adapter, params)
        entries = [entry.logprob for entry in output.prompt_logprobs or () if entry is not None]
        distances.append((torch.tensor(entries) - right).square().mean().item())
    under_test.close()
    assert distances[1] < 0.6 * distances[0]


def test_figures_are_those_of_the_files(
    base_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, Tensor]] = []

    def watched(pair: Pair, variants: Mapping[str, Callable[[], None]], batches: Any) -> Any:
        for enter in variants.values():
            enter()
            measured.append({name: layer.b.detach().clone() for name, layer in pair.layers.items()})
        return fidelities(pair, variants, batches)

    monkeypatch.setattr("finlora.training.restoration.restoration.fidelities", watched)
    order = RestorationOrder(
        name="r", model=str(base_folder), texts=(text_file,), ranks=(4,), num_steps=2,
        length=LENGTH, registry=AdapterRegistry(tmp_path), command="", device="cpu",
    )  # fmt: skip
    restoration = Restoration(order, lambda _: None)
    (restored,) = restoration.each()
    stored = parse_weights(
        parse_config(restored.files.config), restored.files.weights, restoration.base.spec,
        max_rank=4,
    )  # fmt: skip
    _, closed_form, learned = measured
    assert all(torch.equal(learned[name], layer.b.float()) for name, layer in stored.items())
    assert all(torch.equal(b, b.bfloat16().float()) for b in closed_form.values())


def test_a_name_that_is_taken_is_told_before_anything_is_loaded(
    base_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    given = ["Not A Name", "--method", "restore", "--text", str(text_file)]
    with pytest.raises(FinLoRAError):
        main([*given, "--base-model", str(base_folder), "--registry", str(tmp_path / "r")])


@pytest.mark.parametrize(
    "wrong",
    [
        "--rank 0", "--rank x", "--rank 513", "--seed -1", "--seed 99999999999999999999",
        "--batch-size 0", "--learning-rate 0", "--learning-rate nan", "--length 1",
        "--num-steps 0", "--calibration-sequences 0", "--held-out-sequences 0", "",
    ],
)  # fmt: skip
def test_wrong_usage(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", "x.txt"] if wrong else []
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["name", "--method", "restore", *text, *wrong.split()])
    assert wrong.partition(" ")[0] in capsys.readouterr().err


def test_a_rank_above_a_layers_size_is_refused(
    base_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    given = ["restored", "--method", "restore", "--text", str(text_file), "--rank", "4,65"]
    given += ["--base-model", str(base_folder), "--registry", str(tmp_path), "--device", "cpu"]
    with pytest.raises(ConfigError, match=r"rank 65 is too high for .*q_proj, whose .* 64 at most"):
        main([*given, "--length", str(LENGTH)])
