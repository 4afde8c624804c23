"""Opens an endpoint of the gateway for a test, which then is the program: a real rollout waits until the test is done.

async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
    answer = await opened.client.post("/v1/chat/completions", json={...})
assert opened.played.failure is None
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from rollout.environments.base import Environment, Model, Score
from rollout.environments.endpoint import Endpoint
from rollout.images.sources import encode_data_uri, encode_pillow_image
from rollout.records.task import Task
from rollout.session.policy import PolicyClient
from rollout.testing import Played, play

QUESTION = {"role": "user", "content": "Heads or tails?"}
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
"""The path of each dialect."""
TIMEOUT = 60.0
PICTURE_URL = encode_data_uri("image/png", encode_pillow_image(Image.new("RGB", (64, 64), "red")))


@dataclass
class OpenedEndpoint:
    """An endpoint, and a client that has its key.

    Attributes:
        endpoint: the endpoint.
        client: sends requests to the server's root with the key as a bearer token.
        played: the rollout; only after the block.
    """

    endpoint: Endpoint
    client: httpx.AsyncClient
    played: Played | None = None


class _WaitingEnvironment(Environment):
    """Opens an endpoint, and ends when the test is done with it."""

    def __init__(self, opened: "asyncio.Future[Endpoint]", done: asyncio.Event, options: dict[str, Any]) -> None:
        super().__init__(self.Settings())
        self._options = options
        self._opened = opened
        self._done = done

    async def run(self, task: Task, model: Model) -> Score:
        async with model.endpoint(**self._options) as endpoint:
            self._opened.set_result(endpoint)
            await self._done.wait()
        return Score(1.0)


@asynccontextmanager
async def open_endpoint(policy: PolicyClient, **options: Any) -> AsyncIterator[OpenedEndpoint]:
    """Play a rollout whose program is the block. A rollout that ended by itself is seen in `played` afterwards.

    `options` are those of `model.endpoint`. With a socket, the client sends its requests there.
    """
    endpoint_opened: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()
    playing = asyncio.create_task(play(_WaitingEnvironment(endpoint_opened, done, options), policy=policy))
    try:
        either: list[asyncio.Future[Any]] = [endpoint_opened, playing]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not endpoint_opened.done():
            raise AssertionError(f"the endpoint did not open: {(await playing).failure}")
        endpoint = endpoint_opened.result()
        headers = {"Authorization": f"Bearer {endpoint.key}"}
        transport = httpx.AsyncHTTPTransport(uds=str(endpoint.unix_socket)) if options.get("socket") else None
        async with httpx.AsyncClient(
            base_url=endpoint.anthropic_base_url, headers=headers, timeout=TIMEOUT, transport=transport
        ) as client:
            opened = OpenedEndpoint(endpoint, client)
            yield opened
    finally:
        done.set()
        endpoint_opened.cancel()
        played = await playing
    opened.played = played


def good_body(dialect: str, **more: Any) -> dict[str, Any]:
    """Return a small request that every endpoint answers, with one sampled token."""
    bodies: dict[str, dict[str, Any]] = {
        "chat": {"messages": [QUESTION], "max_tokens": 1},
        "responses": {"input": [QUESTION], "max_output_tokens": 1},
        "messages": {"messages": [QUESTION], "max_tokens": 1},
    }
    return {"model": "tiny", **bodies[dialect], **more}


def error_problem(dialect: str, body: Any) -> str | None:
    """Return what is wrong with the shape of an error; None if it is right."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str) or not error["message"]:
        return "it has no error with a message"
    if not isinstance(error.get("type"), str):
        return "its error has no type"
    if dialect == "messages":
        return None if body.get("type") == "error" else "it has not the type error"
    return None if {"param", "code"} <= error.keys() else "its error has no param or no code"
