"""An engine with a key: without the key, only /health and /metrics answer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineMisconfigured
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.weight_updates import NotUpdatable, fetch_engine_state
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings, ScriptedEngine
from rollout.serving.endpoint import create_app
from rollout.serving.vllm_key.rollout_vllm_key import RequireKey

KEY = "a key that nobody may see"
ROUTES = [
    (next(iter(sorted(route.methods or ()))), route.path)
    for route in create_app(ScriptedEngine(EmbeddedSettings()), weight_version="0").routes
    if isinstance(route, Route)
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedServer(EmbeddedSettings(), api_key=KEY) as url:
        yield url


@pytest.mark.parametrize("authorization", [None, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, f"Basic {KEY}", "Bearer"])
def test_without_the_key_every_route_except_health_is_closed(url: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with httpx.Client(base_url=url, headers=headers) as client:
        statuses = {path: client.request(method, path).status_code for method, path in ROUTES}
    assert statuses.pop("/health") == 200
    assert len(statuses) > 10
    assert set(statuses.values()) == {401}


def test_the_refusal_says_what_is_missing_and_shows_no_key(url: str) -> None:
    error = httpx.post(f"{url}/pause", headers={"authorization": "Bearer wrong"}).json()["error"]
    assert error["type"] == "AuthenticationError"
    assert "needs its API key with every request" in error["message"]
    assert "wrong" not in error["message"]


async def test_our_client_sends_the_key_to_every_route(url: str) -> None:
    async with EngineClient([url], "tiny-qwen3-vl", timeout=20, api_key=KEY) as client:
        await client.check()
    async with HttpxTransport(KEY) as transport:
        assert (await fetch_engine_state(transport, url)).version == "0"
    async with HttpxTransport("wrong") as transport:
        with pytest.raises(EngineMisconfigured, match=r"answered with status 401: .*engine\.api_key_env") as refused:
            await fetch_engine_state(transport, url)
    assert not isinstance(refused.value, NotUpdatable)


async def call(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        raise AssertionError("a request without a key must not be read")

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "passed"})


@pytest.mark.parametrize(
    ("scope", "is_open"),
    [
        ({"type": "http", "path": "/health"}, True),
        ({"type": "http", "path": "/metrics"}, True),
        ({"type": "http", "path": "/behind/health", "root_path": "/behind"}, True),
        ({"type": "http", "path": "/health/../pause"}, False),
        ({"type": "http", "path": "/pause", "method": "OPTIONS"}, False),
        ({"type": "http", "path": "/invocations"}, False),
        ({"type": "websocket", "path": "/health"}, False),
        ({"type": "websocket", "path": "/v1/realtime"}, False),
        ({"type": "lifespan", "path": ""}, True),
    ],
)
async def test_only_some_requests_pass_without_the_key(scope: dict[str, Any], is_open: bool) -> None:
    sent = await call(RequireKey(inner, KEY), {"headers": [], **scope})
    assert (sent == [{"type": "passed"}]) == is_open


async def test_two_keys_in_one_request_are_refused() -> None:
    header = (b"Authorization", f"bearer {KEY}".encode())
    app = RequireKey(inner, KEY)
    assert await call(app, {"type": "http", "path": "/pause", "headers": [header]}) == [{"type": "passed"}]
    (start, _) = await call(app, {"type": "http", "path": "/pause", "headers": [header, header]})
    assert start["status"] == 401


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_the_middleware_does_not_start_without_a_key_in_its_environment(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_API_KEY", value)
    with pytest.raises(ValueError, match="VLLM_API_KEY is empty"):
        RequireKey(inner)
