import json
from itertools import islice
from pathlib import Path

import pytest

from loadtest.errors import LoadTestError
from loadtest.headlines import DEFAULT_FILE, headlines, read_prompts

ROOT = Path(__file__).parents[2]


def test_a_headline_stands_between_what_makes_it_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "headlines.jsonl"
    row = {"context": "Instruction: {a/b}?\nInput: Profit rose 12 %\nAnswer: ", "target": "a"}
    file.write_text(json.dumps(row) + "\n\n")
    (headline,) = islice(headlines(read_prompts(file), seed=1), 1)
    assert headline.before == "Instruction: {a/b}?\nInput: "
    assert headline.after == "\nAnswer: "
    assert headline.prompt == f"{headline.before}{headline.text}{headline.after}"
    assert headline.template == "Instruction: {a/b}?\nInput: {input}\nAnswer: "
    company, _, rest = headline.text.partition(": ")
    assert len(company) == 5
    assert company.isupper()
    assert rest.startswith("Profit rose ")


def test_a_text_file_has_a_headline_a_line(tmp_path: Path) -> None:
    file = tmp_path / "headlines.txt"
    file.write_text("Shares fall\n\n  Bank pays more  \nShares fall\n")
    prompts = read_prompts(file)
    assert len(prompts) == 2
    assert all("Please choose an answer" in prompt for prompt in prompts)
    assert prompts[1].endswith("Input: Bank pays more\nAnswer: ")


def test_no_headline_comes_twice_and_every_seed_has_its_own() -> None:
    prompts = read_prompts(ROOT / DEFAULT_FILE)
    first = [h.prompt for h in islice(headlines(prompts, seed=1), 1000)]
    again = [h.prompt for h in islice(headlines(prompts, seed=1), 1000)]
    other = [h.prompt for h in islice(headlines(prompts, seed=2), 1000)]
    assert first == again
    assert len(set(first)) == 1000
    assert not set(first) & set(other)
    assert not set(first) & set(prompts)


@pytest.mark.parametrize("content", [None, "", "\n", "not json\n", '{"text": "x"}\n', "[]\n"])
def test_a_file_without_headlines_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "headlines.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LoadTestError, match=r"headlines\.jsonl"):
        read_prompts(file)
