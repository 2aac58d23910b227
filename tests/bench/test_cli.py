import json
from pathlib import Path

import pytest

from finlora.bench.cli import main
from finlora.errors import ConfigError

SMALL = ["--num-prompts", "4", "--prompt-tokens", "8,16", "--batch-sizes", "1,3"]
SMALL += ["--context", "12", "--num-steps", "4", "--adapters", "2", "--rank", "4"]
SMALL += ["--rounds", "1", "--mixed-batch-size", "2", "--swaps", "5", "--max-model-len", "128"]


def test_every_part_gives_figures_beside_their_bounds(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "bench.json"
    assert main(["--model", str(base), *SMALL, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [(row["prompt_tokens"], row["num_adapters"]) for row in found["prefill"]] == [
        (8, 0),
        (8, 2),
        (16, 0),
        (16, 2),
    ]
    rates, rows = found["rates"], found["decode"]
    assert [(row["batch_size"], row["num_adapters"]) for row in rows] == [
        (1, 0),
        (1, 2),
        (3, 0),
        (3, 2),
    ]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["batch_size"] / row["step_seconds"])
        assert row["share_of_bound"] == pytest.approx(row["bound_seconds"] / row["step_seconds"])
        assert row["bound_seconds"] < row["serial_bound_seconds"]
        assert row["context_tokens"] == pytest.approx(12, abs=1)
    whole = 2 * 98304 * found["prefill"][0]["tokens_per_second"] / rates["matmul"]
    assert found["prefill"][0]["share_of_matmul_peak"] == pytest.approx(whole)
    assert len(found["mixed"]) == 3
    assert {row["way"] for row in found["swap"]} == {"RAM to slot", "disk to slot"}
    assert found["memory"]["parts"]["kv_cache"] > 0
    assert found["memory"]["process"]["resident"] > found["memory"]["process"]["unique"] > 0
    assert found["settings"]["max_model_len"] == 128
    assert "api_key" not in found["settings"]
    shown = capsys.readouterr().out
    assert "of the bound" in shown
    assert "of base only" in shown


def test_only_the_chosen_part_is_measured(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ["prefill", "--model", str(base), *SMALL, "--adapters", "0", "--json", str(file)]
    assert main(arguments) == 0
    found = json.loads(file.read_text())
    assert [row["num_adapters"] for row in found["prefill"]] == [0, 0]
    assert found["decode"] == found["mixed"] == found["swap"] == []
    assert found["memory"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--adapters", "17"], "--max-loras 17"),
        (["--rank", "65"], "--max-lora-rank 65"),
        (["--max-num-seqs", "0"], "max_num_seqs"),
    ],
)
def test_what_cannot_be_measured_is_told_before_loading(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        main(["--model", str(tmp_path), *arguments])


@pytest.mark.parametrize("arguments", [["training"], ["--batch-sizes", "1,0"], ["--rounds", "-1"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
