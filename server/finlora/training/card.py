"""The model card: what an adapter is, how to ask it, how good it is, how to make it again."""

from collections.abc import Iterable
from typing import Any

from finlora.adapters.adapter import Manifest
from finlora.training.config import TrainingConfig

ROWS = {
    "adapter": "this adapter",
    "adapter_on_compared_rows": "the same, on the rows compared below",
    "adapter_without_trailing_space": "the same, the prompt's trailing space stripped",
    "bare_base": "the bare base",
    "version_in_service": "the version it is to follow, on all rows",
}


def model_card(name: str, config: TrainingConfig, manifest: Manifest, command: str) -> str:
    """README.md of an adapter."""
    sections = [
        _front_matter(config, manifest),
        f"# {name}",
        config.description or f"A LoRA adapter for {manifest.base_name}.",
        _base(config, manifest),
        _prompt(config),
        _scores(manifest.scores),
        _data(manifest),
        f"## How it was made\n\n    {command}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(config: TrainingConfig, manifest: Manifest) -> str:
    lines = [f"base_model: {manifest.base_name}", "library_name: peft"]
    if config.licence:
        lines.append(f"license: {config.licence.lower()}")
    return "---\n" + "\n".join(lines) + "\n---"


def _base(config: TrainingConfig, manifest: Manifest) -> str:
    method = "DoRA" if config.peft_use_dora else "rsLoRA" if config.peft_use_rslora else "LoRA"
    base = manifest.quantization
    storage = {"nf4": "NF4 with double quantisation", "int8": "8 bits", "none": "16 bits"}
    return (
        f"{method} of rank {config.lora_r}, trained on {manifest.base_name} "
        f"(fingerprint {(manifest.base_fingerprint or '')[:12]}) in {storage[base.type]}, "
        f"computed in {base.compute_dtype}. Serve it on the same base in the same storage."
    )


def _prompt(config: TrainingConfig) -> str:
    if config.template is None:
        return ""
    prompt = config.template.text.replace("\n", "\n    ")
    return f"## Prompt\n\n    {prompt}\n\nThe space after the last colon belongs to it."


def _scores(scores: dict[str, Any] | None) -> str:
    if not scores:
        return ""
    doubts = scores.get("doubts", {})
    seen = doubts.get("initial_adapter", "never trained on")
    if "loss" in scores:
        rows = f"On {scores['num_rows']} validation rows, {seen}: {scores['how']}"
        figures = f"{scores['loss']:.3f}, of the bare base {scores['bare_base_loss']:.3f}"
        return f"## Scores\n\n{rows} {figures}."
    table = [
        "| | rows | accuracy | macro F1 |",
        "|---|---|---|---|",
        *(_line(title, scores[key]) for key, title in ROWS.items() if key in scores),
    ]
    labels = ["| label | rows | precision | recall | F1 |", "|---|---|---|---|---|"]
    labels += [
        f"| {label} | {s['num_rows']} | {s['precision']:.3f} | {s['recall']:.3f} | {s['f1']:.3f} |"
        for label, s in scores["adapter"]["per_label"].items()
    ]
    how = f"On validation rows, {seen}; {scores['how']}."
    if "version_in_service" in doubts:
        how += f" {doubts['version_in_service']}."
    calibration = _calibration(scores.get("calibration"))
    return "\n".join(["## Scores", "", how, "", *table, "", *labels, *calibration])


def _calibration(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return []
    return [
        "",
        f"Probabilities are calibrated by the temperature {found['temperature']:.2f}, fitted to "
        f"the same rows: their mean negative log-likelihood is {found['calibrated_log_loss']:.3f}, "
        f"without it {found['log_loss']:.3f}.",
    ]


def _line(title: str, scores: dict[str, Any]) -> str:
    figures = f"{scores['accuracy']:.3f} | {scores['macro_f1']:.3f}"
    return f"| {title} | {scores['num_rows']} | {figures} |"


def _data(manifest: Manifest) -> str:
    sources = [
        _source(entry["name"], entry["licence"], entry["url"])
        for entry in manifest.data or ()
        if "licence" in entry
    ]
    facts = manifest.training or {}
    rows = f"{facts.get('num_train_rows')} rows trained on, {facts.get('num_valid_rows')} held out."
    return "\n".join(["## Data", "", *_bullets(sources), rows])


def _source(name: str, licence: str, url: str | None) -> str:
    return f"{name} ({licence})" + (f", {url}" if url else "")


def _bullets(items: Iterable[str]) -> list[str]:
    lines = [f"- {item}" for item in items]
    return [*lines, ""] if lines else []
