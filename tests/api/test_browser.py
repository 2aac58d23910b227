"""The playground in a real Chromium; skipped where there is none (make test-tools installs it)."""

import httpx
import pytest
from pydantic import SecretStr

from finlora.config import Settings
from tests.api.browser import Page
from tests.api.live import LiveServer, register, serving
from tests.api.playground import (
    LABELS,
    TEXTS,
    choose,
    classify,
    probabilities_by,
    shown,
    wait_until_done,
    written_by,
)


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
