"""A CSV file on the playground, in a real Chromium."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.browser import Page
from tests.api.playground import (
    PROBABILITIES,
    choose,
    probabilities_by,
)

ROWS = [
    ["id", "headline", "note"],
    ["1", 'Profit rose, "sharply"', "a,b"],
    ["2", "two\r\nlines", ""],
    ["3", "", "no text"],
    ["4", "long " * 300, "too long"],
    ["5", "Überschuss — gestiegen €", 'quote " inside'],
    ["6", "short"],
]


def written(rows: list[list[str]], **options: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


class TestFile:
    """A CSV file in, labels out."""

    def test_drop_label_download(self, tolerant: Page, http: httpx.Client, tmp_path: Path) -> None:
        file = tmp_path / "news of today.csv"
        file.write_bytes(written(ROWS).encode("utf-8-sig"))
        choose(tolerant, "news", "tweets")
        tolerant.drop("header", file)
        tolerant.wait("!document.querySelector('#file-setup').hidden")
        chosen = "document.querySelector('#text-column').selectedOptions[0].textContent"
        assert tolerant.run(chosen) == "headline"
        tolerant.press("Enter", "Control")
        tolerant.wait("!document.querySelector('#download').hidden")
        assert "6 rows in" in tolerant.text("#file-status")
        tolerant.click("#download")
        while tolerant.wait_for("Browser.downloadProgress")["state"] != "completed":
            pass
        with (tolerant.downloads / "news of today.labels.csv").open(newline="") as result:
            heading, *rows = csv.reader(result)
        assert heading[3:] == [
            f"{model}.{name}"
            for model in ("news", "tweets")
            for name in ("label", "probability", *PROBABILITIES, "error")
        ]
        assert [row[:3] for row in rows] == [[*row, ""][:3] for row in ROWS[1:]]
        for row in rows:
            for model, (label, likeliest, *values, error) in (
                ("news", row[3:8]),
                ("tweets", row[8:]),
            ):
                if row[0] in "346":
                    assert (label, likeliest, *values) == ("", "", "", "")
                    assert error
                    continue
                expected = probabilities_by(http, model, row[1])
                assert label == max(expected, key=expected.__getitem__)
                # The page's rows are computed together, which in float32 rounds otherwise.
                assert list(map(float, values)) == pytest.approx(list(expected.values()), abs=1e-5)
                assert likeliest == max(values, key=float)
                assert error == ""

    @pytest.mark.parametrize("content", ["", "only,a,heading\n", 'a,b\n1,"never closed\n'])
    def test_what_is_no_table(self, page: Page, tmp_path: Path, content: str) -> None:
        file = tmp_path / "odd.csv"
        file.write_text(content)
        page.drop("header", file)
        page.wait("document.querySelector('#file-status').classList.contains('wrong')")
        assert "odd.csv cannot be used" in page.text("#file-status")

    def test_stopped_and_gone_on(self, page: Page, tmp_path: Path) -> None:
        file = tmp_path / "many.csv"
        file.write_text("text\n" + "".join(f"headline {i}\n" for i in range(1000)))
        choose(page, "news")
        page.drop("header", file)
        page.wait("!document.querySelector('#file-setup').hidden")
        page.press("Enter", "Control")
        page.wait("document.querySelector('#file-progress').value > 0")
        page.press("Escape")
        page.wait("!document.querySelector('#file-run').disabled")
        assert "Stopped" in page.text("#file-status")
        page.press("Enter", "Control")
        page.wait("document.querySelector('#file-progress').value === 1")
        page.wait("document.querySelector('#file-status').textContent.startsWith('1,000 rows')")

    def test_the_parser_reads_what_python_writes_and_the_other_way_round(self, page: Page) -> None:
        drawn = random.Random(0)
        alphabet = ["a", "ü", " ", ",", '"', "\n", "\r\n", ";", "€", "\t"]

        def field() -> str:
            return "".join(drawn.choices(alphabet, k=drawn.randrange(5)))

        tables = [
            [["x", *(field() for _ in range(drawn.randrange(4)))] for _ in range(4)]
            for _ in range(100)
        ]
        styles: list[dict[str, Any]] = [
            {"lineterminator": "\n"},
            {"lineterminator": "\r\n"},
            {"quoting": csv.QUOTE_ALL},
        ]
        texts = [written(table, **style) for table in tables for style in styles]
        source = "document.querySelector('script[src]').src.replace('app.js', 'csv.js')"
        parsed, formatted = page.run(
            f"import({source}).then(({{ parse, format }}) =>"
            f" [{json.dumps(texts)}.map(parse), {json.dumps(tables)}.map(format)])"
        )
        assert parsed == [table for table in tables for _ in styles]
        for text, table in zip(formatted, tables, strict=True):
            assert list(csv.reader(io.StringIO(text, newline=""))) == table
