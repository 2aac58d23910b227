"""`finlora models`: what is on disk, in words and in JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from finlora.bases.cli import main
from finlora.errors import BaseModelError
from tests.default_base import NAME


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_base_from_fetch_to_list(
    llama: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (embedded,) = run_json(capsys, "list")
    assert embedded["name"] == NAME
    assert embedded["folder"] is None

    fetched = run_json(capsys, "fetch", str(llama))
    assert fetched["num_linear_layers"] == 14
    assert fetched["source_bytes"] == sum(file.stat().st_size for file in llama.iterdir())
    (kind,) = fetched["quantized_bytes"]
    assert kind.startswith("nf4-")

    shown = run_json(capsys, "show", str(llama))
    assert shown == fetched
    listed = run_json(capsys, "list")
    assert [base["name"] for base in listed] == [NAME, "tiny-llama"]
    assert listed[1]["quantized_bytes"] == fetched["quantized_bytes"]


def test_fetching_16_bits_quantises_nothing(
    llama: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = run_json(capsys, "fetch", str(llama), "--quantization", "none")
    assert fetched["quantized_bytes"] == {}
    assert not (empty_cache / "quantized").exists()


def test_words(llama: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fetch", str(llama)])
    assert "fingerprint" in capsys.readouterr().out
    main(["list"])
    embedded, local = capsys.readouterr().out.splitlines()[1:]
    assert embedded.split() == [NAME, "not", "fetched", "-"]
    assert local.split()[:3] == ["tiny-llama", "1", "MiB"]


def test_what_is_not_on_disk_is_not_shown(empty_cache: Path) -> None:
    with pytest.raises(BaseModelError, match=f"{NAME} is not on disk"):
        main(["show", NAME])
    assert not empty_cache.exists()
