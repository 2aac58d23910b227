"""The playground in a real Chromium; skipped where there is none (make test-tools installs it)."""

import csv
import io
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from finlora.config import Settings
from tests.api.browser import Browser, BrowserError, Page, browsing, find_chromium
from tests.api.live import LiveServer, register, serving

TEXTS = ["The bank raised its outlook", 'Shares "fell", <b>sharply</b>']
TEMPLATE = "News: {input}\nAnswer: "  # of `news`, lent to the models that have none
LABELS = ["negative", "positive"]
PROBABILITIES = ["probability_negative", "probability_positive"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed: make test-tools")
    profile = tmp_path_factory.mktemp("browser")
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(browsing(program, profile))
        except BrowserError as error:  # a snap, for one, hides the test's files and pipes
            pytest.skip(str(error))
        yield browser


@pytest.fixture
def blank(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    page = Page(browser, downloads)
    yield page
    page.close()


@pytest.fixture
def page(blank: Page, server: LiveServer) -> Iterator[Page]:
    """The playground with its models; the console must stay silent."""
    blank.open(server.url)
    blank.wait("document.querySelectorAll('#models li').length > 2")
    yield blank
    assert blank.complaints() == []


@pytest.fixture
def tolerant(blank: Page, server: LiveServer) -> Page:
    """The same where a request fails: the console tells of that and of nothing else."""
    blank.open(server.url)
    blank.wait("document.querySelectorAll('#models li').length > 2")
    return blank


def choose(page: Page, *names: str) -> None:
    page.run(
        "for (const item of document.querySelectorAll('#models li')) {"
        f" const box = item.querySelector('input'); const wanted = {json.dumps(names)};"
        " if (box.checked !== wanted.includes(item.dataset.model)) box.click(); }"
    )


def classify(page: Page, texts: list[str]) -> None:
    page.run("document.querySelector('#texts').value = ''")
    page.click("#texts")
    page.type("\n".join(texts))
    page.press("Enter", "Control")


def wait_until_done(page: Page) -> None:
    page.wait("document.querySelector('#stop').disabled")


def written_by(http: httpx.Client, model: str, text: str) -> str:
    body = {"model": model, "prompt": TEMPLATE.replace("{input}", text), "max_tokens": 12}
    answer = http.post("/v1/completions", json=body | {"temperature": 0})
    return str(answer.json()["choices"][0]["text"])


def probabilities_by(http: httpx.Client, model: str, text: str) -> dict[str, float]:
    body = {"model": model, "input": text, "labels": LABELS, "template": TEMPLATE}
    answer = http.post("/v1/classify", json=body | {"return_probabilities": True})
    found: dict[str, float] = answer.json()["data"][0]["probabilities"]
    return found


def shown(page: Page, row: int, column: int) -> dict[str, Any]:
    found: dict[str, Any] = page.run(f"""(() => {{
        const cell = document.querySelectorAll('.compare tbody tr')[{row}].cells[{column} + 1];
        const texts = (s) => [...cell.querySelectorAll(s)].map((node) => node.textContent);
        return {{
            labels: texts('.bars .name'), values: texts('.bars .value').map(Number),
            top: texts('.chip')[0], says: texts('.says')[0],
        }};
    }})()""")
    return found


class TestHeadlines:
    """Several models side by side."""

    def test_probabilities_and_answers_are_the_servers(
        self, page: Page, http: httpx.Client
    ) -> None:
        choose(page, "tiny-llama", "tweets")
        classify(page, TEXTS)
        wait_until_done(page)
        assert "2 headlines by 2 models" in page.text("#compare-status")
        for row, text in enumerate(TEXTS):
            for column, model in enumerate(("tiny-llama", "tweets")):
                found = shown(page, row, column)
                expected = probabilities_by(http, model, text)
                assert found["labels"] == LABELS
                assert found["values"] == pytest.approx(list(expected.values()), abs=6e-4)
                assert found["top"] == max(expected, key=expected.__getitem__)
                assert found["says"] == written_by(http, model, text)

    def test_the_same_prompt_for_all(self, page: Page, http: httpx.Client) -> None:
        choose(page, "news")
        page.run(
            "document.querySelector('#prompt-panel').open = true;"
            "const set = (id, value) => { const node = document.getElementById(id);"
            " node.value = value; node.dispatchEvent(new Event('change')); };"
            "set('prompt-kind', 'same'); set('template', 'x {input}'); set('labels', 'up, down');"
            "set('max-tokens', '0')"
        )
        classify(page, TEXTS[:1])
        wait_until_done(page)
        assert shown(page, 0, 0)["labels"] == ["up", "down"]
        assert shown(page, 0, 0)["says"] == ""
        page.run("document.querySelector('#labels').value = 'up, up'")
        page.press("Enter", "Control")
        page.wait("document.querySelector('#compare-status').textContent.includes('twice')")

    def test_text_is_never_markup(self, page: Page) -> None:
        choose(page, "news")
        classify(page, ["<img src=x onerror=alert(1)>"])
        wait_until_done(page)
        assert page.run("document.querySelectorAll('#results img').length") == 0
        assert "<img" in page.text("#results")

    def test_stop(self, page: Page, server: LiveServer) -> None:
        choose(page, "news", "tweets")
        page.run("document.querySelector('#max-tokens').value = 200")
        classify(page, [f"headline number {i}" for i in range(30)])
        page.wait("document.querySelector('.says:not(:empty)')")
        page.press("Escape")
        wait_until_done(page)
        assert page.text("#compare-status") == "Stopped."
        server.wait_until_idle()

    def test_what_cannot_be_asked(self, page: Page) -> None:
        choose(page)
        classify(page, TEXTS)
        page.wait("document.querySelector('#compare-status').textContent === 'Choose a model.'")
        choose(page, "news")
        classify(page, [])
        page.wait("document.querySelector('#compare-status').textContent.includes('first')")

    def test_a_refused_request_is_told_in_its_column(self, tolerant: Page) -> None:
        choose(tolerant, "news")
        classify(tolerant, ["long " * 300])
        wait_until_done(tolerant)
        assert "context" in tolerant.text("#compare-status")
        assert "context" in tolerant.text(".compare thead")

    def test_a_broken_adapter_is_told_in_its_column_and_harms_no_other(
        self, blank: Page, server: LiveServer
    ) -> None:
        registry = server.state.registry
        adapter = register(registry.folder, server.state.engine.spec, "broken", seed=61)
        try:
            weights = adapter.folder / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"!")
            blank.open(server.url)
            blank.wait("document.querySelector('[data-model=broken]')")
            choose(blank, "broken", "news")
            classify(blank, TEXTS)
            wait_until_done(blank)
        finally:
            registry.remove("broken")
        assert blank.text("#compare-status").startswith("broken: ")
        assert blank.run("document.querySelectorAll('.compare thead .wrong').length") == 1
        assert shown(blank, 1, 1)["labels"] == LABELS


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
                assert list(map(float, values)) == pytest.approx(list(expected.values()), abs=1e-6)
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


class TestServer:
    """What the page tells of the server, and of its absence."""

    def test_tiles_show_the_metrics(self, page: Page, http: httpx.Client) -> None:
        choose(page, "news")
        classify(page, TEXTS[:1])
        wait_until_done(page)
        page.wait("/^\\d/.test(document.querySelector('#tile-ttft').textContent)")
        slots = "[...document.querySelectorAll('#models [data-model=news] .tier')][0].textContent"
        page.wait(f"{slots} === 'slot'")
        assert page.text("#tile-adapters").endswith("/ 16")
        assert page.text("#tile-memory").endswith("MB")
        assert "running" in page.text("#tile-rate-note")

    def test_a_wrong_key_the_right_key_and_where_it_is_kept(
        self, blank: Page, settings: Settings
    ) -> None:
        key = "schlüssel-€"
        with serving(settings.model_copy(update={"api_key": SecretStr(key)})) as server:
            blank.open(server.url)
            blank.wait("document.activeElement.id === 'key'")
            assert "wants an API key" in blank.text("#server")
            blank.type("wrong")
            blank.press("Enter")
            blank.wait("document.querySelector('#server-text').textContent.includes('not the')")
            blank.wait("document.activeElement.id === 'key'")
            blank.type(key)
            blank.press("Enter")
            blank.wait("document.querySelectorAll('#models li').length > 2")
            blank.wait("document.querySelector('#server').dataset.state === 'ok'")
            assert blank.run("[Object.values(sessionStorage), localStorage.length]") == [[key], 0]
            assert blank.run("document.cookie + location.href").endswith(f"{server.url}/")

    def test_a_server_that_goes_away(self, blank: Page, settings: Settings) -> None:
        with serving(settings) as server:
            blank.open(server.url)
            blank.wait("document.querySelector('#server').dataset.state === 'ok'")
        classify(blank, TEXTS)
        blank.wait("document.querySelector('#server').dataset.state === 'gone'")
        blank.wait("document.querySelector('#compare-status').textContent.includes('reached')")

    def test_the_policy_holds(self, blank: Page, server: LiveServer) -> None:
        blank.open(server.url)
        blank.complaints()
        blank.run(
            "(() => { const script = document.createElement('script');"
            " script.textContent = 'window.ran = true'; document.head.append(script); })()"
        )
        assert blank.run("window.ran === undefined")
        assert "Content Security Policy" in " ".join(blank.complaints())


class TestKeyboard:
    """Everything without a mouse."""

    def test_from_the_models_to_the_answer(self, page: Page) -> None:
        page.press("/")
        page.wait("document.activeElement.closest('li')?.dataset.model === 'tiny-llama'")
        page.press(" ")  # off
        page.press("Tab")
        page.press(" ")
        page.press("h")
        page.wait("document.activeElement.id === 'texts'")
        page.type("h/? are letters here")
        page.press("Enter", "Control")
        page.wait("document.querySelector('#compare-status').textContent.includes(' in ')")
        assert page.run(
            "[...document.querySelectorAll('.compare thead .model-name')].map(n => n.textContent)"
        ) == ["tweets"]

    def test_tabs_and_help(self, page: Page) -> None:
        page.press("2", "Alt")
        page.wait("document.activeElement.id === 'tab-file'")
        assert page.run("document.querySelector('#compare').hidden")
        page.press("ArrowLeft")
        page.wait("document.activeElement.id === 'tab-compare'")
        assert page.run("document.querySelector('#file').hidden")
        page.press("?")
        page.wait("document.querySelector('#help').open")
        page.press("Escape")
        page.wait("!document.querySelector('#help').open")

    def test_every_control_has_a_name(self, page: Page) -> None:
        nodes = page.command("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "checkbox", "combobox", "tab", "spinbutton", "link"}
        nameless = [
            node["role"]["value"]
            for node in nodes
            if node.get("role", {}).get("value") in roles and not node.get("name", {}).get("value")
        ]
        assert nameless == []

    def test_a_phone_needs_no_sideways_scrolling(self, page: Page) -> None:
        page.show(320, 700, mobile=True)
        for tab in ("file", "compare"):
            page.click(f"#tab-{tab}")
            page.wait("document.documentElement.scrollWidth === 320")
