"""How the page is delivered. What it does is tested in a browser (test_browser.py)."""

import re

import httpx
import pytest


def links(page: str) -> list[str]:
    found: list[str] = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    return found


def test_the_page_and_all_it_loads_come_from_here(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert len(links(page.text)) == 2
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text)
    modules = [path for path in links(page.text) if path.endswith(".js")]
    for path in modules:  # grows
        script = http.get(f"/{path}").text
        assert "://" not in script
        folder = path.rpartition("/")[0]
        names = re.findall(r'from "\./([^"]+)"', script)
        modules += [m for name in names if (m := f"{folder}/{name}") not in modules]
    assert len(modules) > 5


def test_nothing_but_this_servers_files_may_run(http: httpx.Client) -> None:
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert f"{directive} 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page.text)
    for path in ["", *links(page.text)]:
        assert http.get(f"/{path}").headers["x-content-type-options"] == "nosniff"


def test_files_are_kept_the_page_is_asked_for_again(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["cache-control"] == "no-cache"
    for path in links(page.text):
        assert "immutable" in http.get(f"/{path}").headers["cache-control"]
    for path in ["", *links(page.text)]:
        etag = http.get(f"/{path}").headers["etag"]
        again = http.get(f"/{path}", headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        assert http.get(f"/{path}", headers={"If-None-Match": '"x"'}).status_code == 200


def test_head(http: httpx.Client) -> None:
    answer = http.head("/")
    assert answer.content == b""
    assert int(answer.headers["content-length"]) == len(http.get("/").content)


@pytest.mark.parametrize("name", ["../index.html", "%2e%2e%2fplayground.py", "nothing.js", ""])
def test_there_is_nothing_else(http: httpx.Client, name: str) -> None:
    folder = links(http.get("/").text)[0].rpartition("/")[0]
    assert http.get(f"/{folder}/{name}").status_code == 404
    assert http.get("/static/0000000000000000/app.js").status_code == 404
