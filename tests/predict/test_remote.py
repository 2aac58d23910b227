"""Labels from a server are the labels of the engine in process."""

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from finlora.config import Quantization, Settings
from finlora.errors import ConfigError, RemoteError
from finlora.offline.results import Classification
from finlora.predict.cli import main
from finlora.predict.labeller import Question
from finlora.predict.remote import RemoteLabeller
from tests.api.live import LiveServer, serving
from tests.predict.conftest import HEADLINES, World

KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[LiveServer]:
    settings = Settings(
        model=str(world.base), registry=world.registry, quantization=Quantization.NONE,
        device="cpu", max_model_len=128, kv_cache_bytes=16 << 20, api_key=KEY,  # type: ignore[arg-type]
    )  # fmt: skip
    with serving(settings) as live:
        yield live


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINLORA_API_KEY", KEY)


def write(path: Path, texts: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_labels_as_in_process(server: LiveServer, world: World, tmp_path: Path) -> None:
    texts = [*HEADLINES * 20, "word " * 200, "   ", *HEADLINES]
    source = write(tmp_path / "news.csv", texts)
    arguments = [str(source), "--adapter", "news", "-o"]
    assert main([*arguments, str(tmp_path / "here.csv"), *world.flags]) == 3
    assert main([*arguments, str(tmp_path / "there.csv"), "--url", f"{server.url}/v1"]) == 3
    for here, there in zip(read(tmp_path / "here.csv"), read(tmp_path / "there.csv"), strict=True):
        assert here["text"] == there["text"]
        assert here["label"] == there["label"]
        assert bool(here["error"]) == bool(there["error"])
        if not here["error"]:
            assert float(here["probability"]) == pytest.approx(
                float(there["probability"]), abs=0.02
            )
    assert "context is 128 tokens" in read(tmp_path / "there.csv")[80]["error"]


ALONE = """
import sys
from finlora.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "bitsandbytes", "fastapi"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def test_a_client_of_a_server_brings_no_engine(server: LiveServer, tmp_path: Path) -> None:
    source = write(tmp_path / "news.csv", HEADLINES)
    command = [sys.executable, "-c", ALONE, "predict", str(source), "--adapter", "news"]
    done = subprocess.run(
        [*command, "--url", server.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len([*csv.DictReader(io.StringIO(done.stdout))]) == len(HEADLINES)


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        (["--adapter", "nobody"], RemoteError, "nobody"),
        (["--template", "{input}"], ConfigError, "name them with --labels"),
        (["--labels", "a,b"], RemoteError, "template"),
    ],
)
def test_what_the_server_cannot_do_ends_the_run(
    arguments: list[str], error: type[Exception], what: str, server: LiveServer, tmp_path: Path
) -> None:
    source = write(tmp_path / "news.csv", HEADLINES)
    with pytest.raises(error, match=what):
        main([str(source), "-o", str(tmp_path / "out.csv"), "--url", server.url, *arguments])


def test_a_wrong_key_is_told(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINLORA_API_KEY", "wrong")
    source = write(tmp_path / "news.csv", HEADLINES)
    with pytest.raises(RemoteError, match="put the key into FINLORA_API_KEY"):
        main([str(source), "--adapter", "news", "--url", server.url])


def labeller(answer: Callable[[httpx.Request], httpx.Response]) -> RemoteLabeller:
    http = httpx.Client(base_url="http://test/v1/", transport=httpx.MockTransport(answer))
    return RemoteLabeller(http, Question("news"))


def test_a_busy_server_is_asked_again() -> None:
    num_asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_asked
        if request.method == "GET":
            return httpx.Response(200, json={"id": "news", "labels": ["a", "b"]})
        num_asked += 1
        if num_asked < 3:
            return httpx.Response(503, headers={"retry-after": "0"})
        found = {"index": 0, "label": "a", "probabilities": {"a": 0.75, "b": 0.25}}
        return httpx.Response(200, json={"data": [found]})

    assert list(labeller(answer).each(["x"])) == [Classification("a", {"a": 0.75, "b": 0.25})]
    assert num_asked == 3


MODEL = {"id": "news", "labels": ["a", "b"]}
ENTRY = {"index": 0, "label": "a", "probabilities": {"a": 0.75, "b": 0.25}}


@pytest.mark.parametrize(
    ("adapter", "model", "classified"),
    [
        ("news", "<html>", None),
        ("news", {"name": "news"}, None),
        ("news", ["news"], None),
        ("news", {"id": "news", "labels": "ab"}, None),
        (None, {"models": []}, None),
        (None, {"data": []}, None),
        (None, {"data": [{"id": "news", "parent": "base"}]}, None),
        (None, {"data": None}, None),
        ("news", MODEL, {"results": [ENTRY]}),
        ("news", MODEL, {"data": []}),
        ("news", MODEL, {"data": [ENTRY, ENTRY]}),
        ("news", MODEL, {"data": [{**ENTRY, "index": 1}]}),
        ("news", MODEL, {"data": [{"index": 0, "label": "a", "probs": [0.75, 0.25]}]}),
        ("news", MODEL, {"data": [{**ENTRY, "probabilities": {"b": 1.0}}]}),
    ],
)
def test_a_server_that_is_not_ours_is_told(
    adapter: str | None, model: object, classified: object
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        found = model if request.method == "GET" else classified
        if isinstance(found, str):
            return httpx.Response(200, text=found)
        return httpx.Response(200, json=found)

    http = httpx.Client(base_url="http://test/v1/", transport=httpx.MockTransport(answer))
    with pytest.raises(RemoteError, match=r"http://test/v1/.*: no finlora server answers there"):
        list(RemoteLabeller(http, Question(adapter)).each(["x"]))
