"""One server for all tests of the API; after each test nothing may be left in its engine."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from pydantic import SecretStr

from finlora.config import Quantization, Settings
from finlora.model import base_spec
from tests import tiny_models
from tests.api.browser import Browser, BrowserError, Page, browsing, find_chromium
from tests.api.live import MAX_MODEL_LEN, LiveServer, register, serving

ADMIN_KEY = "admin-key"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("api")
    model = tiny_models.build("llama", folder / "tiny-llama")
    spec = base_spec(str(model))
    register(
        folder / "registry",
        spec,
        "news",
        seed=0,
        created="2026-01-02T03:04:05",
        prompt_template="News: {input}\nAnswer: ",
    )
    register(folder / "registry", spec, "tweets", seed=1)
    register(folder / "registry", spec, "stranger", seed=9, fingerprint="0" * 64)
    return Settings(
        model=str(model),
        quantization=Quantization.NF4,
        device="cpu",
        registry=folder / "registry",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=16,
        max_num_waiting=112,
        kv_cache_bytes=4 * 2**20,
        max_body_bytes=200_000,
        shutdown_seconds=5,
        admin_key=SecretStr(ADMIN_KEY),
    )


@pytest.fixture(scope="session")
def live(settings: Settings) -> Iterator[LiveServer]:
    with serving(settings) as server:
        yield server


@pytest.fixture
def server(live: LiveServer) -> Iterator[LiveServer]:
    yield live
    live.wait_until_idle()


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def admin(server: LiveServer) -> Iterator[httpx.Client]:
    """A client with the admin key; what a test pins it must unpin."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=server.url, timeout=60, headers=headers) as client:
        yield client
        rows = client.get("/v1/admin/adapters").json()["data"]
        assert not [row["name"] for row in rows if row["pinned"]]


@pytest.fixture(scope="session")
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
    page.complaints()  # of an earlier test that provoked them
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
