"""What a base may be called, and what is said when there is none."""

import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finlora.bases.locate import display_name, find, locate
from finlora.errors import BaseModelError
from tests.default_base import NAME


def test_a_local_folder_is_itself(llama: Path) -> None:
    assert locate(str(llama)) == find(str(llama)) == llama
    assert display_name(str(llama)) == "tiny-llama"


def test_the_embedded_base_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    assert display_name(NAME) == NAME


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_is_no_base(llama: Path, missing: str) -> None:
    (llama / missing).unlink()
    with pytest.raises(BaseModelError, match=f"has no {missing}"):
        locate(str(llama))


NO_HUB_IDS = ("a--b/c", "a/b..c", "a./b", "x" * 97 + "/y")


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "a/b/c", "../up", "", *NO_HUB_IDS])
def test_unknown_names(name: str) -> None:
    assert find(name) is None
    with pytest.raises(BaseModelError, match="unknown base"):
        locate(name)


def hub_snapshot(base: Path, hub: Path) -> None:
    """Lay the folder out as the hub's client caches `owner/tiny`."""
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(base, repository / "snapshots" / ("0" * 40))


def test_a_hub_id_works_offline_once_it_is_cached(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_snapshot(llama, tmp_path / "hub")
    assert (locate("owner/tiny") / "config.json").is_file()
    assert find("owner/tiny") == locate("owner/tiny")
    assert find("owner/other") is None
    with pytest.raises(BaseModelError, match=r"owner/other .* cannot be reached"):
        locate("owner/other")


class Hub(BaseHTTPRequestHandler):
    """A hub that answers every question with the error its class attributes say."""

    status = 404
    error_code = ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.error_code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # the name that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "error_code", "message"),
    [
        (403, "GatedRepo", "is gated"),
        (404, "RepoNotFound", "is not on the hub"),
        (418, "", "cannot fetch owner/tiny|cannot be reached"),
    ],
)
def test_what_the_hub_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, error_code: str, message: str
) -> None:
    monkeypatch.setattr(Hub, "status", status)
    monkeypatch.setattr(Hub, "error_code", error_code)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        try:
            with pytest.raises(BaseModelError, match=message):
                locate("owner/tiny")
        finally:
            server.shutdown()
            thread.join()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        closed = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    with pytest.raises(BaseModelError, match="cannot be reached"):
        locate("owner/tiny")
