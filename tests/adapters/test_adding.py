"""finlora adapters add, as a user calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finlora.adapters import cli
from finlora.adapters.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.errors import AdapterError
from tests.adapters.commands import run_json
from tests.adapters.conftest import MakeCopy
from tests.adapters.peft_folders import (
    edit_config,
    logits,
    read_tensors,
    save_adapter,
    write_tensors,
)
from tests.adapters.registries import tree_hash
from tests.tiny_models import build

VARIANTS = {"lora": "other_r4", "rslora": "other_r4_rslora", "dora": "other_r4_dora"}

pytestmark = pytest.mark.usefixtures("users_defaults")


@pytest.mark.parametrize("kind", VARIANTS)
def test_folders_that_plain_peft_made_can_be_added(
    peft_folders: dict[str, Path],
    registry: AdapterRegistry,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    facts = run_json(capsys, "add", peft_folders[kind], "--name", "sentiment")

    adapter = registry.resolve("sentiment")
    assert (facts["digest"], facts["variant"]) == (adapter.digest, VARIANTS[kind])
    assert facts["num_layers"] == (4 if kind == "dora" else 14)
    assert registry.read(adapter) == (peft_folders[kind] / WEIGHTS_FILE).read_bytes()
    assert len(facts["warnings"]) == 3  # base, tokenizer and quantisation are not recorded
    assert adapter.manifest.base_fingerprint is None
    assert adapter.manifest.base_name == "tiny"


def test_what_the_user_states_is_recorded(
    peft_folders: dict[str, Path],
    base_folder: Path,
    spec: BaseSpec,
    registry: AdapterRegistry,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["add", str(peft_folders["lora"]), "--name", "sentiment", "--model", str(base_folder)]
    argv += ["--trained-on", "nf4", "--labels", "no, yes", "--licence", "MIT", "--strict"]
    assert cli.main([*argv, "--template", "Q: {input}\nA: "]) == 0

    output = capsys.readouterr()
    adapter = registry.resolve("sentiment")
    assert output.out.startswith(f"added 4bits_r4/{adapter.reference}: lora, rank 4, 14 layers")
    assert output.err == ""
    assert adapter.manifest.labels == ["no", "yes"]
    assert adapter.manifest.base_fingerprint == spec.fingerprint
    assert adapter.manifest.tokenizer_hash == spec.tokenizer_hash
    assert (adapter.manifest.licence, adapter.manifest.quantization.type) == ("MIT", "nf4")
    assert adapter.manifest.prompt_template == "Q: {input}\nA: "


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--labels", "one", "labels: "),
        ("--labels", "a,,b", "labels: "),
        ("--labels", "a, a", "labels: "),
        ("--template", "without a place", r"prompt_template: .*\{input\} exactly once"),
    ],
)
def test_statements_that_cannot_be_so_are_refused(
    peft_folders: dict[str, Path], registry: AdapterRegistry, option: str, value: str, reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        cli.main(["add", str(peft_folders["lora"]), "--name", "sentiment", option, value])
    assert not registry.folder.exists()


def test_a_version_of_one_registry_can_be_added_to_another(
    peft_folders: dict[str, Path], registry: AdapterRegistry, tmp_path: Path
) -> None:
    argv = ["add", str(peft_folders["lora"]), "--name", "sentiment", "--licence", "MIT"]
    cli.main([*argv, "--trained-on", "nf4"])
    adapter = registry.resolve("sentiment")
    other = tmp_path / "other"
    cli.main(["add", str(adapter.folder), "--name", "copy", "--registry", str(other)])

    copied = AdapterRegistry(other).resolve("copy")
    assert (copied.digest, copied.manifest) == (adapter.digest, adapter.manifest)


def test_a_registered_version_is_a_folder_that_plain_peft_loads(
    peft_folders: dict[str, Path], base_folder: Path, registry: AdapterRegistry
) -> None:
    cli.main(["add", str(peft_folders["patterns"]), "--name", "sentiment"])

    loaded = logits(base_folder, registry.resolve("sentiment").folder)
    assert torch.equal(loaded, logits(base_folder, peft_folders["patterns"]))
    assert not torch.equal(loaded, logits(base_folder, peft_folders["lora"]))


def test_what_is_odd_about_an_accepted_folder_is_told(
    copy: MakeCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("lora")
    edit_config(folder, base_model_name_or_path="meta-llama/Llama-3.1-8B")
    cli.main(["add", str(folder), "--name", "sentiment"])
    assert "names the base 'meta-llama/Llama-3.1-8B'; checked against 'tiny'" in (
        capsys.readouterr().err
    )

    cli.main(["add", str(folder), "--name", "sentiment", "--licence", "MIT"])
    assert "the facts recorded then are kept" in capsys.readouterr().err


def _truncate(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def _change_tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = read_tensors(folder)
        write_tensors(folder, {key: change(tensor).contiguous() for key, tensor in tensors.items()})

    return apply


def _pickle_only(folder: Path) -> None:
    torch.save(read_tensors(folder), folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()


def _state_other_base(folder: Path) -> None:
    manifest = Manifest(base_fingerprint="0" * 64)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "not valid safetensors"),
    "not finite": (_change_tensors(lambda t: t / 0), "not finite"),
    "wrong shape": (_change_tensors(lambda t: t[:2, :2]), "A has shape [2, 2], its rank"),
    "zero delta": (_change_tensors(torch.zeros_like), "changes nothing"),
    "pickle only": (_pickle_only, "adapter_model.bin is a pickle"),
    "another base": (_state_other_base, "trained on another base"),
    "rank": (lambda f: edit_config(f, r=5), "its rank by adapter_config.json is 5"),
    "rank too large": (lambda f: edit_config(f, r=65), "rank 65 is above the limit of 64"),
    "option": (lambda f: edit_config(f, modules_to_save=["lm_head"]), "modules_to_save is set"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "adapter_config.json is missing"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "safetensors is missing"),
    "empty": (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), "not valid safetensors"),
    "manifest": (
        lambda f: (f / MANIFEST_FILE).write_text('{"labels": 3}'),
        "manifest.json: labels",
    ),
    "no folder": (lambda f: f.rename(f.with_name("gone")), "is not a folder"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_adapters_are_refused_with_the_reason_and_change_nothing(
    peft_folders: dict[str, Path], copy: MakeCopy, registry: AdapterRegistry, case: str
) -> None:
    damage, reason = UNFIT[case]
    cli.main(["add", str(peft_folders["rslora"]), "--name", "sentiment"])
    folder = copy("lora")
    damage(folder)
    before = tree_hash(registry.folder)

    for name in ("new", "sentiment"):
        with pytest.raises(AdapterError) as refusal:
            cli.main(["add", str(folder), "--name", name])
        assert reason in str(refusal.value)
    assert tree_hash(registry.folder) == before


def test_an_adapter_made_for_a_wider_base_is_refused(
    tmp_path: Path, registry: AdapterRegistry
) -> None:
    base = build("llama", tmp_path / "wide", hidden_size=128, intermediate_size=256)
    folder = save_adapter(base, tmp_path / "adapter")

    with pytest.raises(AdapterError, match=r"A has shape \[4, 128\]; this base needs \[4, 64\]"):
        cli.main(["add", str(folder), "--name", "sentiment"])
    assert not registry.folder.exists()


def test_strict_refuses_an_unknown_quantisation(
    peft_folders: dict[str, Path], registry: AdapterRegistry
) -> None:
    with pytest.raises(AdapterError, match="not recorded which quantisation"):
        cli.main(["add", str(peft_folders["lora"]), "--name", "sentiment", "--strict"])
    assert not registry.folder.exists()
