"""Administration through the real server, also while requests run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from finlora.adapters.adapter import Adapter
from finlora.api import admin as admin_routes
from tests.api.live import LiveServer, register, serving

ROUTES = [
    ("GET", "/v1/admin/adapters"),
    ("POST", "/v1/admin/adapters/news/load"),
    ("POST", "/v1/admin/adapters/news/evict"),
    ("POST", "/v1/admin/adapters/news/pin"),
    ("POST", "/v1/admin/adapters/news/unpin"),
    ("POST", "/v1/admin/adapters/news/rollback"),
    ("PUT", "/v1/admin/aliases/latest"),
    ("DELETE", "/v1/admin/aliases/latest"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
]
LONG = {"prompt": "The bank", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


def rows(admin: httpx.Client, name: str) -> list[dict[str, Any]]:
    listed = admin.get("/v1/admin/adapters").json()["data"]
    return [row for row in listed if row["name"] == name]


def change(admin: httpx.Client, path: str, **body: str) -> list[dict[str, Any]]:
    response = admin.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["data"]
    return found


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@contextmanager
def registered(server: LiveServer, name: str, *seeds: int) -> Iterator[list[Adapter]]:
    """Versions of one adapter; the name means the last."""
    registry, spec = server.state.registry, server.state.engine.spec
    yield [register(registry.folder, spec, name, seed=seed) for seed in seeds]
    if registry.is_registered(name):
        registry.remove(name)


class TestKey:
    """Nothing is administered without the admin key."""

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    def test_without_the_key_every_route_is_closed(
        self, http: httpx.Client, method: str, path: str
    ) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = http.request(method, path, headers=headers)
            assert refusal(response) == (401, "invalid_api_key")

    def test_every_route_of_the_application_is_in_the_list_above(self, server: LiveServer) -> None:
        assert len(admin_routes.router.routes) == len({*ROUTES})

    def test_the_admin_key_opens_nothing_else(self, settings: Any) -> None:
        keys = {"api_key": "one", "admin_key": "other"}
        secret = type(settings.admin_key)
        changed = settings.model_copy(update={k: secret(v) for k, v in keys.items()})
        with serving(changed) as server, httpx.Client(base_url=server.url) as http:
            for path, key, status in (
                ("/v1/models", "one", 200),
                ("/v1/models", "other", 401),
                ("/v1/admin/adapters", "one", 401),
                ("/v1/admin/adapters", "other", 200),
            ):
                headers = {"Authorization": f"Bearer {key}"}
                assert http.get(path, headers=headers).status_code == status

    def test_a_server_without_an_admin_key_has_no_administration(self, settings: Any) -> None:
        with serving(settings.model_copy(update={"admin_key": None})) as server:
            for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer None"}):
                response = httpx.get(f"{server.url}/v1/admin/adapters", headers=headers)
                assert refusal(response) == (403, "administration_disabled")
                assert "FINLORA_ADMIN_KEY" in response.json()["error"]["message"]


class TestMemory:
    """Load, pin, evict; what the list tells of it."""

    def test_from_disk_to_memory_and_back(self, admin: httpx.Client, server: LiveServer) -> None:
        with registered(server, "fresh", 31) as [adapter]:
            [row] = rows(admin, "fresh")
            assert row == {
                "name": "fresh",
                "digest": adapter.digest,
                "current": True,
                "aliases": [],
                "tiers": ["disk"],
                "loading": False,
                "pinned": False,
                "requests": 0,
                "disk_bytes": (adapter.folder / "adapter_model.safetensors").stat().st_size,
                "memory_bytes": None,
                "last_used": None,
            }
            [row] = change(admin, "admin/adapters/fresh/load")
            assert row["tiers"] == ["disk", "ram"]
            assert row["memory_bytes"] > 0
            assert admin.post("/v1/completions", json={"model": "fresh", **LONG}).is_success
            [row] = rows(admin, "fresh")
            assert row["tiers"] == ["disk", "ram", "slot"]
            assert row["last_used"] > server.state.started
            server.wait_until_idle()
            [row] = change(admin, "admin/adapters/fresh/evict")
            assert row["tiers"] == ["disk"]
            assert change(admin, "admin/adapters/fresh/evict") == [row]  # once more: no harm

    def test_the_base_and_other_bases_adapters_are_not_listed(self, admin: httpx.Client) -> None:
        names = {row["name"] for row in admin.get("/v1/admin/adapters").json()["data"]}
        assert {"news", "tweets"} <= names
        assert not names & {"tiny-llama", "stranger"}

    def test_what_is_pinned_is_not_evicted(self, admin: httpx.Client) -> None:
        [row] = change(admin, "admin/adapters/tweets/pin")
        assert row["pinned"]
        try:
            assert {"ram", "slot"} & {*row["tiers"]}
            refused = admin.post("/v1/admin/adapters/tweets/evict")
            assert refusal(refused) == (409, "adapter_conflict")
            assert "unpin" in refused.json()["error"]["message"]
        finally:
            [row] = change(admin, "admin/adapters/tweets/unpin")
        assert not row["pinned"]

    def test_a_removed_adapter_can_still_be_unpinned_and_evicted(
        self, admin: httpx.Client, server: LiveServer
    ) -> None:
        with registered(server, "passing", 33) as [adapter]:
            change(admin, "admin/adapters/passing/pin")
            server.state.registry.remove("passing")
            [row] = rows(admin, "passing")
            assert (row["current"], row["tiers"]) == (False, ["ram"])
            assert change(admin, "admin/adapters/passing/unpin") == [row | {"pinned": False}]
            assert change(admin, f"admin/adapters/passing@{adapter.digest[:8]}/evict") == []

    @pytest.mark.parametrize("action", ["load", "evict", "pin", "unpin", "rollback"])
    @pytest.mark.parametrize("name", ["nobody", "news@12345678"])
    def test_an_unknown_adapter(self, admin: httpx.Client, action: str, name: str) -> None:
        response = admin.post(f"/v1/admin/adapters/{name}/{action}")
        assert response.status_code == (400 if action == "rollback" and "@" in name else 404)

    @pytest.mark.parametrize("name", ["tiny-llama", "stranger"])
    def test_what_is_not_loaded(self, admin: httpx.Client, name: str) -> None:
        response = admin.post(f"/v1/admin/adapters/{name}/load")
        assert refusal(response) == (404, "model_not_found")

    def test_broken_files_are_told_and_leave_no_pin(
        self, admin: httpx.Client, server: LiveServer
    ) -> None:
        with registered(server, "broken", 34) as [adapter]:
            weights = adapter.folder / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"!")
            for action in ("load", "pin"):
                response = admin.post(f"/v1/admin/adapters/broken/{action}")
                assert refusal(response) == (500, "adapter_load_failed")

    def test_one_slot_stays_free_of_pins(self, settings: Any) -> None:
        admin_headers = {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
        with (
            serving(settings.model_copy(update={"max_loras": 2})) as server,
            httpx.Client(base_url=server.url, headers=admin_headers) as admin,
        ):
            change(admin, "admin/adapters/news/pin")
            change(admin, "admin/adapters/news/pin")  # again: no second one
            refused = admin.post("/v1/admin/adapters/tweets/pin")
            assert refusal(refused) == (409, "adapter_conflict")
            assert admin.post("/v1/completions", json={"model": "tweets", **LONG}).is_success
            change(admin, "admin/adapters/news/unpin")


class TestVLLMsNames:
    """`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

    def test_load_and_unload(self, admin: httpx.Client, server: LiveServer) -> None:
        with registered(server, "fresh", 31) as [adapter]:
            for path in ({}, {"lora_path": "fresh"}, {"lora_path": f"fresh@{adapter.digest[:8]}"}):
                [row] = change(admin, "load_lora_adapter", lora_name="fresh", **path)
                assert "ram" in row["tiers"]
                [row] = change(admin, "unload_lora_adapter", lora_name="fresh")
                assert row["tiers"] == ["disk"]

    @pytest.mark.parametrize("path", ["/tmp/adapter", "../news", "file:news", "nobody", "tweets"])
    def test_no_path_is_ever_opened(self, admin: httpx.Client, path: str) -> None:
        body = {"lora_name": "news", "lora_path": path}
        response = admin.post("/v1/load_lora_adapter", json=body)
        assert refusal(response) == (400, "invalid_value")
        assert response.json()["error"]["param"] == "lora_path"

    def test_the_folder_of_an_adapter_is_a_path_too(
        self, admin: httpx.Client, server: LiveServer
    ) -> None:
        folder = server.state.registry.resolve("news").folder
        body = {"lora_name": "news", "lora_path": str(folder)}
        response = admin.post("/v1/load_lora_adapter", json=body)
        assert "finlora adapters add" in response.json()["error"]["message"]

    @pytest.mark.parametrize(
        "body",
        [{}, {"lora_name": 3}, {"lora_name": "news", "lora_int_id": 1}, [], {"lora_name": ""}],
    )
    def test_other_bodies_are_refused(self, admin: httpx.Client, body: Any) -> None:
        for path in ("load", "unload"):
            response = admin.post(f"/v1/{path}_lora_adapter", json=body)
            assert refusal(response) == (400, "invalid_value")

    def test_what_is_not_supported_is_refused_by_name(self, admin: httpx.Client) -> None:
        body = {"lora_name": "news", "load_inplace": True}
        error = admin.post("/v1/load_lora_adapter", json=body).json()["error"]
        assert error["message"] == "unknown field: load_inplace"
        assert error["param"] == "load_inplace"


class TestRegistry:
    """Aliases and rollback, as the log tells them."""

    def test_an_alias(self, admin: httpx.Client, http: httpx.Client, server: LiveServer) -> None:
        path = "/v1/admin/aliases/latest"
        assert admin.put(path, json={"name": "news"}).json() == {"alias": "latest", "name": "news"}
        try:
            assert rows(admin, "news")[0]["aliases"] == ["latest"]
            assert http.get("/v1/models/latest").is_success
        finally:
            assert admin.delete(path).json() == {"alias": "latest", "name": None}
        assert refusal(http.get("/v1/models/latest")) == (404, "model_not_found")
        assert refusal(admin.delete(path)) == (404, "model_not_found")
        changes = server.state.registry.log.read()[-2:]
        assert [(c.who, c.action, c.detail) for c in changes] == [
            ("admin api", "alias", "news"),
            ("admin api", "alias", "removed"),
        ]

    @pytest.mark.parametrize(
        ("alias", "name", "status"),
        [
            ("latest", "nobody", 404),
            ("tweets", "news", 409),
            ("tiny-llama", "news", 409),
            ("UPPER", "news", 400),
            ("%2e%2e%2fx", "news", 404),
        ],
    )
    def test_what_cannot_be_an_alias(
        self, admin: httpx.Client, alias: str, name: str, status: int
    ) -> None:
        response = admin.put(f"/v1/admin/aliases/{alias}", json={"name": name})
        assert response.status_code == status

    def test_rollback(self, admin: httpx.Client, server: LiveServer) -> None:
        with registered(server, "moved", 41, 42) as [old, new]:
            [row] = change(admin, "admin/adapters/moved/rollback")
            assert row["digest"] == server.state.registry.resolve("moved").digest == old.digest
            refused = admin.post("/v1/admin/adapters/moved/rollback")
            assert refusal(refused) == (409, "adapter_conflict")
            [row] = change(admin, "admin/adapters/moved/rollback", to=new.digest[:12])
            assert row["digest"] == new.digest
        changes = server.state.registry.log.read()
        ours = [(c.action, c.who) for c in changes if c.name == "moved"][2:4]
        assert ours == [("rollback", "admin api"), ("promote", "admin api")]

    @pytest.mark.parametrize("body", [{"to": "../x"}, {"to": "abc"}, {"back": 1}, {"to": 3}])
    def test_other_bodies_are_refused(self, admin: httpx.Client, body: Any) -> None:
        response = admin.post("/v1/admin/adapters/news/rollback", json=body)
        assert refusal(response) == (400, "invalid_value")


def answers(http: httpx.Client, model: str, count: int) -> Iterator[tuple[str, str]]:
    """Fingerprint and text, one request after the other."""
    for _ in range(count):
        response = http.post("/v1/completions", json={"model": model, **LONG})
        assert response.status_code == 200, response.text
        body = response.json()
        yield body["system_fingerprint"], body["choices"][0]["text"]


class TestUnderLoad:
    """Requests go on unharmed, each on one version, whatever an administrator does meanwhile."""

    def test_evict_is_refused_while_a_request_runs(
        self, admin: httpx.Client, http: httpx.Client
    ) -> None:
        body = {"model": "news", **LONG, "stream": True, "max_tokens": 200}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            [row] = rows(admin, "news")
            assert row["requests"] == 1
            refused = admin.post("/v1/admin/adapters/news/evict")
            assert refusal(refused) == (409, "adapter_conflict")
            assert '"finish_reason":"length"' in "".join(lines)

    def test_requests_survive_evictions_and_rollbacks(
        self, admin: httpx.Client, http: httpx.Client, server: LiveServer
    ) -> None:
        with registered(server, "busy", 51, 52) as versions:
            alone = dict(next(answers(http, v.reference, 1)) for v in versions)
            assert len({*alone.values()}) == 2
            with ThreadPoolExecutor(4) as pool:
                running = [pool.submit(lambda: list(answers(http, "busy", 5))) for _ in range(4)]
                for version in islice(cycle(versions), 20):
                    change(admin, "admin/adapters/busy/rollback", to=version.digest)
                    evicted = admin.post("/v1/admin/adapters/busy/evict")
                    assert evicted.status_code in (200, 409)
                seen = [answer for future in running for answer in future.result()]
            assert len(seen) == 20
            assert {*seen} <= {*alone.items()}
            server.wait_until_idle()
            change(admin, "admin/adapters/busy/evict")
            server.state.engine._engine.check_idle()


def test_a_registry_that_cannot_be_written_is_an_error_not_a_crash(
    admin: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".lock").mkdir()
    monkeypatch.setattr(server.state.registry, "folder", tmp_path)
    response = admin.put("/v1/admin/aliases/latest", json={"name": "news"})
    assert response.status_code == 500
