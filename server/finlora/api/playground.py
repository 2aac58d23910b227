"""GET /: the playground, one page with its scripts and styles, and nothing from anywhere else."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = "static"
PAGE = "index.html"
# What the page writes where its scripts are; their folder is named by their content.
VERSION_FIELD = b"{version}"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ASK_EACH_TIME = "no-cache"
NEVER_CHANGES = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    cache_control: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def playground_router() -> APIRouter:
    """Routes to the page and its files, which are read now, once."""
    router = APIRouter()
    page, known, others = _read()

    @router.get("/")
    @router.head("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, page)

    @router.get("/static/{version}/{name}")
    @router.head("/static/{version}/{name}", include_in_schema=False)
    async def static(request: Request, version: str, name: str) -> Response:
        if version != known or name not in others:
            raise HTTPException(404)
        return _answer(request, others[name])

    return router


def _read() -> tuple[_File, str, dict[str, _File]]:
    """The page, the version of the other files, and these by name."""
    contents = {file.name: file.read_bytes() for file in (files("finlora.api") / FOLDER).iterdir()}
    page = contents.pop(PAGE)
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(name.encode() + b"\0" + hashlib.sha256(contents[name]).digest())
    version = digest.hexdigest()[:16]
    others = {n: _File(content, _type_of(n), NEVER_CHANGES) for n, content in contents.items()}
    page = page.replace(VERSION_FIELD, version.encode())
    return _File(page, _type_of(PAGE), ASK_EACH_TIME), version, others


def _type_of(name: str) -> str:
    return CONTENT_TYPES[name[name.rindex(".") :]]


def _answer(request: Request, file: _File) -> Response:
    headers = HEADERS | {"ETag": file.etag, "Cache-Control": file.cache_control}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers | {"Content-Type": file.content_type})
