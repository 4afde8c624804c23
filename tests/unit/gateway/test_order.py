"""What comes first: the refusal before the first byte, the step before the last event, the comments meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rollout.config.gateway import GatewayConfig
from rollout.environments.endpoint import Endpoint
from rollout.gateway import requests
from rollout.trainer import check
from tests.unit.gateway.raw_client import DIALECTS, DialectName, RawClient, body_of, text_of
from tests.unit.gateway.served import HeldQueue, Served, serve, until

SCHEMA = {"type": "object", "properties": {}}
CONSTRAINTS: dict[DialectName, dict[str, Any]] = {
    "chat": {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    "responses": {"text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}},
    "messages": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
}
"""What the engine of these tests refuses, when only it can refuse the request any more."""
BAD_IMAGE = "data:image/png;base64,bm8gcGljdHVyZQ=="
IMAGES: dict[DialectName, dict[str, Any]] = {
    "chat": {"type": "image_url", "image_url": {"url": BAD_IMAGE}},
    "responses": {"type": "input_image", "image_url": BAD_IMAGE},
    "messages": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": BAD_IMAGE.partition(",")[2]},
    },
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path, GatewayConfig(constrained="allow")) as opened:
        yield opened


@pytest.fixture
def _many_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_COMMENT_INTERVAL", 0.02)


@pytest.mark.usefixtures("_many_comments")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_no_event_leaves_before_the_step_is_on_the_queue(
    served: Served, dialect: DialectName, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(endpoint: Endpoint) -> None:
        queue = HeldQueue(monkeypatch)
        client = RawClient.of(endpoint)
        await client.send(body_of("Say three words.", dialect, stream=True), dialect)
        await until(lambda: queue.steps == 1)
        await client.read_head()
        for _ in range(5):
            assert (await client.read_chunk()).startswith(b":")
        queue.may_pass.set()
        while (chunk := await client.read_chunk()).startswith(b":"):
            pass
        assert chunk
        assert queue.passed == 1

    assert check((await served.play(program)).trajectory) == []


async def test_an_answer_that_is_not_streamed_waits_for_the_step(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(endpoint: Endpoint) -> None:
        queue = HeldQueue(monkeypatch)
        client = RawClient.of(endpoint)
        await client.send(body_of("Say three words."))
        await until(lambda: queue.steps == 1)
        head = asyncio.ensure_future(client.read_head())
        assert not (await asyncio.wait([head], timeout=0.1))[0]
        queue.may_pass.set()
        await head
        assert queue.passed == 1

    assert check((await served.play(program)).trajectory) == []


@pytest.mark.usefixtures("_many_comments")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_comments_keep_a_stream_alive_while_the_engine_is_slow(served: Served, dialect: DialectName) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        client = RawClient.of(endpoint)
        await client.send(body_of("Say three words.", dialect, stream=True), dialect)
        await client.read_head()
        comments = [await client.read_chunk() for _ in range(5)]
        assert set(comments) == {b": waiting for the model\n\n"}
        served.engine.is_held = False

    await served.play(program)


@pytest.mark.usefixtures("_many_comments")
async def test_an_answer_that_is_not_streamed_has_no_comments(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        client = RawClient.of(endpoint)
        await client.send(body_of("Say three words."))
        await until(lambda: served.engine.started)
        head = asyncio.ensure_future(client.read_head())
        assert not (await asyncio.wait([head], timeout=0.2))[0]
        served.engine.is_held = False
        assert (await head)[0] == 200

    await served.play(program)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_can_be_refused_is_refused_with_a_status_before_a_stream_begins(
    served: Served, dialect: DialectName
) -> None:
    async def program(endpoint: Endpoint) -> None:
        history = [{"role": "user", "content": [IMAGES[dialect]]}]
        answer = await RawClient.of(endpoint).ask(body_of("Look.", dialect, history=history, stream=True), dialect)
        assert (answer.status, answer.is_stream) == (400, False)
        assert "image" in answer.data["error"]["message"]
        assert "[0]" in answer.data["error"]["message"]

    assert (await served.play(program)).trajectory.steps == ()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refusal_of_the_engine_is_an_event_of_a_stream_that_has_begun(
    served: Served, dialect: DialectName
) -> None:
    async def program(endpoint: Endpoint) -> None:
        body = body_of("Say three words.", dialect, stream=True, **CONSTRAINTS[dialect])
        answer = await RawClient.of(endpoint).ask(body, dialect)
        assert (answer.status, answer.is_stream) == (200, True)
        errors = [event for event in answer.events if "error" in str(event)]
        match dialect:
            case "chat":
                assert errors[0]["error"]["type"] == "invalid_request_error"
            case "responses":
                assert errors[-1]["type"] == "response.failed"
                assert errors[-1]["response"]["status"] == "failed"
            case "messages":
                assert (errors[0]["type"], errors[0]["error"]["type"]) == ("error", "invalid_request_error")
        assert "The engine refuses this request" in str(errors)

    assert (await served.play(program)).trajectory.steps == ()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refusal_of_the_engine_is_a_status_without_a_stream(served: Served, dialect: DialectName) -> None:
    async def program(endpoint: Endpoint) -> None:
        answer = await RawClient.of(endpoint).ask(body_of("Say it.", dialect, **CONSTRAINTS[dialect]), dialect)
        assert answer.status == 400
        assert "The engine refuses this request" in answer.data["error"]["message"]

    assert (await served.play(program)).trajectory.steps == ()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_good_request_after_a_refusal_is_answered(served: Served, dialect: DialectName) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        for stream in (False, True):
            await client.ask(body_of("Say it.", dialect, stream=stream, **CONSTRAINTS[dialect]), dialect)
            assert text_of(await client.ask(body_of("Say it.", dialect, stream=stream), dialect), dialect)

    assert len((await served.play(program)).trajectory.steps) == 2


async def test_a_sub_request_waits_for_a_free_place(tmp_path: Path) -> None:
    async with serve(tmp_path, GatewayConfig.model_validate({"limits": {"parallel": 1}})) as served:

        async def program(endpoint: Endpoint) -> None:
            served.engine.is_held = True
            first, second = RawClient.of(endpoint), RawClient.of(endpoint)
            await first.send(body_of("Say three words."))
            await until(lambda: served.engine.started == 1)
            await second.send(body_of("Say other words."))
            await asyncio.sleep(0.1)
            assert served.engine.started == 1
            served.engine.is_held = False
            assert (await first.read()).status == (await second.read()).status == 200

        assert len((await served.play(program)).trajectory.steps) == 2


async def test_a_request_that_is_cancelled_while_it_waits_for_a_place_leaves_it_free(tmp_path: Path) -> None:
    async with serve(tmp_path, GatewayConfig.model_validate({"limits": {"parallel": 1}})) as served:

        async def program(endpoint: Endpoint) -> None:
            served.engine.is_held = True
            first, second, third = (RawClient.of(endpoint) for _ in range(3))
            await first.send(body_of("Say three words."))
            await until(lambda: served.engine.started == 1)
            await second.send(body_of("Say other words."))
            await asyncio.sleep(0.1)  # the server reads it
            second.kill()
            served.engine.is_held = False
            assert (await first.read()).status == (await third.ask(body_of("Go on."))).status == 200

        assert len((await served.play(program)).trajectory.steps) == 2
