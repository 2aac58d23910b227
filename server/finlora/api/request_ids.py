"""X-Request-Id: the client's own or a new one, on every response."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
# Goes into headers and logs as it is: nothing that could end a line or grow without bounds.
ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
SCOPE_KEY = "finlora.request_id"


class RequestIds:
    """Middleware. An id that is too long or has other characters is replaced by a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _chosen(Headers(scope=scope).get(HEADER, ""))
        scope[SCOPE_KEY] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(request: Request) -> str:
    """The id under which a request is answered and logged."""
    request_id: str = request.scope[SCOPE_KEY]
    return request_id


def _chosen(sent: str) -> str:
    return sent if ALLOWED.fullmatch(sent) else uuid.uuid4().hex
