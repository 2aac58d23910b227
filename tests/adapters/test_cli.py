"""finlora adapters, as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finlora.adapters import cli
from finlora.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, Manifest
from finlora.adapters.registry import AdapterRegistry
from tests.adapters.commands import run_json

pytestmark = pytest.mark.usefixtures("users_defaults")


@pytest.fixture
def two_versions(
    peft_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Digests of the first and the second, served, version of `sentiment`."""
    add = ["--name", "sentiment", "--variant", "4bits_r4"]
    digests = [
        run_json(capsys, "add", peft_folders[kind], *add)["digest"] for kind in ("lora", "rslora")
    ]
    return digests[0], digests[1]


def test_list_shows_what_is_served_broken_and_copied_in(
    two_versions: tuple[str, str], registry: AdapterRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "alias", "prod", "sentiment")
    copied = registry.folder / "4bits_r4" / "copied"
    copied.mkdir()
    (copied / CONFIG_FILE).write_text("{}")
    facts = run_json(capsys, "list")

    assert [adapter["digest"] for adapter in facts["adapters"]] == [two_versions[1]]
    assert facts["adapters"][0]["aliases"] == ["prod"]
    assert (facts["broken"], facts["unregistered"]) == ({}, [str(copied)])
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert two_versions[1][:12] in text
    assert f"finlora adapters add {copied} --name copied --variant 4bits_r4" in text

    (registry.resolve("sentiment").folder / CONFIG_FILE).unlink()
    assert list(run_json(capsys, "list")["broken"]) == ["sentiment"]
    assert cli.main(["list"]) == 0
    assert "broken: sentiment: " in capsys.readouterr().out


def test_show_tells_versions_manifest_and_history(
    two_versions: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_versions
    facts = run_json(capsys, "show", f"sentiment@{first[:8]}")

    assert (facts["digest"], facts["versions"]) == (first, [second, first])
    assert [change["digest"] for change in facts["history"]] == [first, second]
    assert facts["config"]["r"] == 4
    assert cli.main(["show", "sentiment"]) == 0
    assert second in capsys.readouterr().out


def test_verify_finds_damage_in_any_version(
    two_versions: tuple[str, str], registry: AdapterRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = run_json(capsys, "verify")
    assert [(v["digest"], v["is_current"]) for v in verdicts] == [
        (two_versions[1], True),
        (two_versions[0], False),
    ]
    assert all(v["problem"] is None and len(v["warnings"]) == 3 for v in verdicts)

    weights = registry.resolve(f"sentiment@{two_versions[0]}").folder / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert cli.main(["verify", "sentiment"]) == 1
    assert "do not match their digest" in capsys.readouterr().out


def test_verify_judges_weights_and_leaves_other_bases_alone(
    registry: AdapterRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    config = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'
    registry.register("bad", "v", config, b"not weights", Manifest())
    other = Manifest(base_fingerprint="0" * 64, base_name="other")
    registry.register("foreign", "v", config, b"who knows", other)

    assert cli.main(["verify", "--json"]) == 1
    bad, foreign = json.loads(capsys.readouterr().out)
    assert "not valid safetensors" in bad["problem"]
    assert foreign["problem"] is None
    assert foreign["warnings"] == ["made for another base (other): files sound, not served"]


def test_rollback_remove_and_prune(
    two_versions: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_versions

    assert run_json(capsys, "rollback", "sentiment")["digest"] == first
    assert run_json(capsys, "rollback", "sentiment", "--to", second[:8])["digest"] == second
    assert run_json(capsys, "prune", "--keep", "0") == {"pruned": [f"sentiment@{first}"]}
    assert run_json(capsys, "remove", "sentiment") == {"removed": "sentiment"}
    assert run_json(capsys, "list")["adapters"] == []
    assert cli.main(["rollback", "sentiment", "--to", second]) == 0
    assert cli.main(["alias", "prod", "sentiment"]) == 0
    assert cli.main(["alias", "prod", "--remove"]) == 0
    assert cli.main(["remove", "sentiment"]) == 0
    assert cli.main(["prune"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"sentiment is sentiment@{second[:12]} again",
        "prod means sentiment",
        "prod removed",
        "removed sentiment",
        "1 versions deleted",
    ]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["add"],
        ["add", "folder"],
        ["add", "folder", "--name", "a", "--quantization", "nf5"],
        ["alias", "prod"],
        ["prune", "--keep", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)

    assert end.value.code == 2
    assert "--help` shows" in capsys.readouterr().err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        assert end.value.code == 0
        assert "--json" in capsys.readouterr().out


def finlora(*argv: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "importtime", "-m", "finlora", "adapters", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_the_program_reports_errors_in_one_line_and_lists_without_torch(
    peft_folders: dict[str, Path],
) -> None:
    command = [sys.executable, "-m", "finlora", "adapters", "remove", "nobody"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "no adapter 'nobody' is registered" in refused.stderr

    cli.main(["add", str(peft_folders["lora"]), "--name", "sentiment"])
    for argv in (["list"], ["show", "sentiment"], ["--help"]):
        done = finlora(*argv)
        assert done.returncode == 0
        imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
        assert "finlora.adapters.registry" in imported
        assert not imported & {"torch", "transformers", "peft", "numpy", "fastapi"}
