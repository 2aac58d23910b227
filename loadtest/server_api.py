"""What a load test asks a server apart from its load: models, routes, metrics. Not for the load."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.server_counts import Scrape, scrape

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ServerAPI:
    """One server; `address` without a path, `key` for its /v1."""

    address: str
    key: str | None = None

    def adapters(self) -> tuple[str, ...]:
        """The adapters it lists; without any, the base. Raises LoadTestError."""
        models = json.loads(self._get("/v1/models"))["data"]
        adapters = tuple(model["id"] for model in models if model.get("parent"))
        return adapters or tuple(model["id"] for model in models)

    def scrape(self) -> Scrape:
        """All its metrics now. Raises LoadTestError."""
        return scrape(self._get("/metrics"))

    def has(self, path: str) -> bool:
        """Whether POST is answered there: an empty body is refused, but not as an unknown path.

        Raises LoadTestError.
        """
        status, body = self._send(path, b"{}")
        return not (status == 404 and _code(body) == "not_found")

    def _get(self, path: str) -> str:
        status, body = self._send(path, None)
        if status != 200:
            raise LoadTestError(f"{self.address}{path} answers {status} {_code(body)}")
        return body.decode()

    def _send(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        request = urllib.request.Request(self.address + path, body, self.headers())
        try:
            with opener().open(request, timeout=TIMEOUT_SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError as error:
            raise LoadTestError(f"no server answers at {self.address}: {error}") from error

    def headers(self) -> dict[str, str]:
        """Of every request."""
        headers = {"Content-Type": "application/json"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})


def opener() -> urllib.request.OpenerDirector:
    """Straight to the server, as the load goes; not through a proxy that the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _code(body: bytes) -> Any:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
