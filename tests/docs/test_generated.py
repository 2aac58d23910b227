"""The parts of the documentation that are made from code are what the code says now."""

import re

import pytest

from docs.field_tables import documented_models, fields_table
from docs.generate import FOLDER, PART, generated, main
from finlora.api.errors import ERRORS, HTTP_ERRORS, INTERNAL_ERROR
from finlora.api.protocol import ChatRequest, CompletionRequest
from finlora.cli import COMMANDS
from finlora.config import Settings

TEXTS = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.md")}


def parts(file: str) -> set[tuple[str, str]]:
    return {(found[2], found[3]) for found in PART.finditer(TEXTS[file])}


def test_everything_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_every_command_has_its_reference() -> None:
    assert {name for kind, name in parts("cli.md") if kind == "command"} >= COMMANDS.keys()


def test_every_body_has_its_fields() -> None:
    documented = {name for kind, name in parts("api.md") if kind == "fields"}
    # What the others have in common.
    shared = {"SamplingRequest"}
    assert documented == documented_models().keys() - shared


def test_every_error_has_its_line() -> None:
    section = TEXTS["api.md"].split("\n## Errors\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{3}[\d, ]*) \| (`[^|]*`) \|", section, re.MULTILINE)
    documented = {
        (int(status), code.strip("`"))
        for statuses, codes in rows
        for status, code in zip(statuses.split(", "), codes.split(", "), strict=True)
    }
    kinds = (INTERNAL_ERROR, *ERRORS.values(), *HTTP_ERRORS.values())
    assert documented == {(kind.status, kind.code) for kind in kinds}


def test_every_setting_has_a_line() -> None:
    assert ("settings", "") in parts("cli.md")
    assert all(f"`FINLORA_{name.upper()}`" in TEXTS["cli.md"] for name in Settings.model_fields)


def test_no_part_is_left_open() -> None:
    for text in TEXTS.values():
        assert len(re.findall("<!-- generated: ", text)) == len(re.findall("<!-- end -->", text))


@pytest.mark.parametrize(
    ("model", "row"),
    [
        (CompletionRequest, "| `temperature` | number | 1.0 | 0 to 2 | "),
        (CompletionRequest, "| `seed` | integer |  | at least -2^63, below 2^63 | "),
        (CompletionRequest, "| `suffix` |  |  |  | refused: "),
        (
            CompletionRequest,
            "| `logit_bias` | object |  | at most 1,024 entries; each -100 to 100 | ",
        ),
        (
            ChatRequest,
            "| `metadata` | object |  | at most 16 entries; keys at most 64 characters; ",
        ),
        (ChatRequest, "| `messages` | list of `Message` | required | 1 to 1,024 entries | "),
    ],
)
def test_a_row_says_type_default_and_bounds(model: type, row: str) -> None:
    assert row in fields_table(model.__name__)


def test_text_around_a_part_stays() -> None:
    text = "a\n<!-- generated: exit_codes -->\nold\n<!-- end -->\nb\n"
    made = generated(text)
    assert made.startswith("a\n<!-- generated: exit_codes -->\n| Code |")
    assert made.endswith("|\n<!-- end -->\nb\n")
    assert generated(made) == made
