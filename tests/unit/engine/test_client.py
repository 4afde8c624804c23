"""The client over engines that misbehave: what is tried again, what is final, and what the server is told."""

import asyncio
import base64
import contextlib
import hashlib
import re
from dataclasses import replace
from typing import Any

import anyio
import orjson
import pytest
from aiohttp.http_parser import HttpResponseParser, HttpResponseParserPy
from structlog.testing import capture_logs

from renderers_adapter.tokens import ExpandedIds, Placeholder, as_logical_ids
from rollout.engine import client as module
from rollout.engine.client import EngineClient
from rollout.engine.errors import (
    EngineBroken,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreachable,
)
from rollout.engine.http import EngineHttp
from rollout.engine.image_refs import ImageRef
from rollout.engine.request import GenerateRequest

UNUSED = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_may_pass_is_tried_again_and_answered_once(
    faulty: Any, behaviours: Any, text: GenerateRequest, status: int
) -> None:
    async with (
        faulty(behaviours["failing"](status, 2)) as engine,
        EngineClient([engine.url], "m", timeout=20) as client,
    ):
        generation = await client.generate(text)
    assert generation.token_ids.tolist() == [5, 6, 7]
    assert [body["request_id"] for body in engine.generated] == ["r-0.0", "r-0.1", "r-0.2"]
    assert len({orjson.dumps({**body, "request_id": ""}) for body in engine.generated}) == 1


@pytest.mark.parametrize(("status", "error"), [(400, EngineRefused), (404, EngineRefused), (500, EngineBroken)])
async def test_what_would_only_repeat_itself_is_final(
    faulty: Any, behaviours: Any, text: GenerateRequest, status: int, error: type[Exception]
) -> None:
    async with (
        faulty(behaviours["failing"](status, 9)) as engine,
        EngineClient([engine.url], "m", timeout=20) as client,
    ):
        with pytest.raises(error, match=f"the engine at {engine.url}/.+ answered {status}: as told, {status}"):
            await client.generate(text)
    assert len(engine.generated) == 1


@pytest.mark.parametrize(("status", "cure"), [(401, "engine.api_key_env"), (403, "--enable-scale-out")])
async def test_a_refusal_names_its_cure(
    faulty: Any, behaviours: Any, text: GenerateRequest, status: int, cure: str
) -> None:
    async with (
        faulty(behaviours["failing"](status, 9)) as engine,
        EngineClient([engine.url], "m", timeout=20) as client,
    ):
        with pytest.raises(EngineRefused, match=re.escape(cure)):
            await client.generate(text)


_NO_BIAS = "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."
"""vLLM's words, which name no parameter."""
_NO_SUCH_TOKEN = "token_id(s) [9] in logit_bias contain out-of-vocab token ids. Vocabulary size: 9"


def refusing_biases(behaviours: Any, message: str, param: str | None = None) -> Any:
    async def behave(body: dict[str, Any]) -> Any:
        if not body["sampling_params"].keys() & {"logit_bias", "min_p"}:
            return behaviours["completion"](body)
        return 400, orjson.dumps({"error": {"message": message, "param": param}})

    return behave


@pytest.mark.parametrize(("message", "param"), [(_NO_BIAS, None), (_NO_SUCH_TOKEN, "logit_bias")])
async def test_an_engine_that_cannot_ban_is_asked_without_and_the_answer_says_so(
    faulty: Any, behaviours: Any, text: GenerateRequest, message: str, param: str | None
) -> None:
    banning = replace(text, banned_ids=(9, 10))
    async with (
        faulty(refusing_biases(behaviours, message, param)) as engine,
        EngineClient([engine.url], "m", timeout=20) as client,
    ):
        with capture_logs() as logs:
            generations = [await client.generate(banning) for _ in range(2)]
    assert [generation.banned_ids for generation in generations] == [(), ()]
    assert ["logit_bias" in body["sampling_params"] for body in engine.generated] == [True, False, False]
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert message in warning["because"]


async def test_an_engine_that_can_ban_is_asked_to(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    async with faulty(behaviours["well"]) as engine, EngineClient([engine.url], "m", timeout=20) as client:
        generation = await client.generate(replace(text, banned_ids=(9, 10)))
    assert generation.banned_ids == (9, 10)


async def test_a_key_of_the_user_that_is_refused_with_the_bans_is_final(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    asked = replace(text, sampling={**text.sampling, "min_p": 0.1}, banned_ids=(9,))
    async with (
        faulty(refusing_biases(behaviours, _NO_BIAS)) as engine,
        EngineClient([engine.url], "m", timeout=20) as client,
    ):
        with pytest.raises(EngineRefused, match="min_p and logit_bias"):
            await client.generate(asked)
    assert ["logit_bias" in body["sampling_params"] for body in engine.generated] == [True, False]


async def test_retries_end(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    async with faulty(behaviours["failing"](503, 99)) as engine:
        async with EngineClient([engine.url], "m", timeout=20, retries=2) as client:
            with pytest.raises(EngineUnavailable):
                await client.generate(text)
    assert len(engine.generated) == 3


async def test_a_connection_that_breaks_is_tried_on_another_engine(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    async with faulty(behaviours["closing"]) as broken, faulty(behaviours["well"]) as sound:
        async with EngineClient([broken.url, sound.url], "m", timeout=20) as client:
            for _ in range(20):
                await client.generate(text)
    assert len(sound.generated) == 20
    # After three failures in a row it was left out.
    assert len(broken.generated) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_an_engine_that_refuses_everybody_does_not_draw_every_turn(
    faulty: Any, behaviours: Any, text: GenerateRequest, status: int
) -> None:
    async with faulty(behaviours["failing"](status, 99)) as broken, faulty(behaviours["well"]) as sound:
        async with EngineClient([broken.url, sound.url], "m", timeout=20) as client:
            for _ in range(20):
                with contextlib.suppress(EngineBroken, EngineRefused):
                    await client.generate(text)
    assert (len(broken.generated), len(sound.generated)) == (3, 17)


@pytest.mark.parametrize(
    "raw",
    [
        b"-ERR unknown command\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n?\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n{}\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 \xff\xfe OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\xff\xfe\r\n",
    ],
)
@pytest.mark.parametrize("parser", [HttpResponseParser, HttpResponseParserPy], ids=["compiled", "python"])
async def test_an_answer_that_is_not_http_or_breaks_off_is_asked_for_elsewhere(
    faulty: Any, behaviours: Any, text: GenerateRequest, raw: bytes, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where aiohttp has no compiled extension it reads answers by itself, and complains of them in other words.
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", parser)

    async def speak(body: dict[str, Any]) -> bytes:
        return raw

    async with faulty(speak) as broken, faulty(behaviours["well"]) as sound:
        async with EngineClient([broken.url, sound.url], "m", timeout=20) as client:
            await client.generate(text)
        assert len(broken.generated) == len(sound.generated) == 1
        async with EngineClient([broken.url], "m", timeout=20, retries=0) as client:
            with pytest.raises(EngineUnreachable) as failed:
                await client.generate(text)
    # A record, a log or a terminal takes it whatever bytes came.
    str(failed.value).encode()


async def test_a_host_that_is_no_name_is_unreachable() -> None:
    async with EngineClient([f"http://{'a' * 64}.example"], "m", timeout=20) as client:
        with pytest.raises(EngineUnreachable, match=r"label (empty or )?too long"):
            await client.check()


async def test_cancellation_within_an_answer_closes_its_connection() -> None:
    request_received, disconnected = asyncio.Event(), asyncio.Event()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")
        await writer.drain()
        while await reader.read(65536):
            request_received.set()
        disconnected.set()
        writer.close()

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server, EngineHttp() as http:
        async with anyio.create_task_group() as group:
            group.start_soon(http.post, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", b"{}")
            await request_received.wait()
            group.cancel_scope.cancel()
        with anyio.fail_after(20):
            await disconnected.wait()


async def test_an_engine_that_returns_is_used_again(
    faulty: Any, behaviours: Any, text: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.routing._MIN_EJECTION_SECONDS", 0.02)
    async with faulty(behaviours["closing"]) as first, faulty(behaviours["well"]) as second:
        first.models = (503, b"")
        async with EngineClient([first.url, second.url], "m", timeout=20) as client:
            for _ in range(10):
                await client.generate(text)
            assert client.replicas[0].is_unavailable
            tried = len(first.generated)
            first.behave = behaviours["well"]
            # It would answer, but does not say so: nothing is sent to it.
            await asyncio.sleep(0.05)
            await client.generate(text)
            assert len(first.generated) == tried
            first.models = second.models
            while client.replicas[0].is_unavailable:
                await client.generate(text)
                await asyncio.sleep(0.01)
            for _ in range(10):
                await client.generate(text)
    assert len(first.generated) > tried


async def test_a_try_that_takes_too_long_is_aborted_and_repeated_elsewhere(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    async with faulty(behaviours["hanging"]) as stuck, faulty(behaviours["well"]) as sound:
        async with EngineClient([stuck.url, sound.url], "m", timeout=20, request_timeout=0.1) as client:
            await client.generate(text)
    assert stuck.aborted == ["generate-tokens-r-0.0"]
    assert [body["request_id"] for body in sound.generated] == ["r-0.1"]


async def test_a_turn_ends_at_its_deadline_whatever_was_tried(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    async with faulty(behaviours["hanging"]) as stuck:
        async with EngineClient([stuck.url], "m", timeout=0.2) as client:
            with pytest.raises(EngineTimeout, match=r"engine\.(request_)?timeout"):
                await client.generate(text)
    assert stuck.aborted == ["generate-tokens-r-0.0"]


async def test_cancellation_aborts_on_the_server(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    async with faulty(behaviours["hanging"]) as stuck, EngineClient([stuck.url], "m", timeout=60) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.generate, text)
            await stuck.arrived.wait()
            group.cancel_scope.cancel()
        assert client.replicas[0].in_flight == 0
    assert stuck.aborted == ["generate-tokens-r-0.0"]


async def test_cancellation_does_not_wait_for_an_engine_that_is_gone(
    faulty: Any, behaviours: Any, text: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ABORT_TIMEOUT", 0.05)
    async with faulty(behaviours["hanging"]) as stuck, EngineClient([stuck.url], "m", timeout=60) as client:

        async def silent(path: str, body: bytes) -> None:
            await asyncio.sleep(3600)

        stuck.answer = silent
        with anyio.move_on_after(0.1) as scope:
            await client.generate(text)
    assert scope.cancelled_caught


async def test_hundreds_of_requests_are_in_flight_at_once(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    everybody = asyncio.Event()

    async def answer_once_all_arrived(body: dict[str, Any]) -> Any:
        if len(engine.generated) == 300:
            everybody.set()
        await everybody.wait()
        return behaviours["completion"](body)

    async with faulty(answer_once_all_arrived) as engine, EngineClient([engine.url], "m", timeout=30) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                group.create_task(client.generate(text))
    assert engine.connections == 300


async def test_a_body_of_megabytes_arrives_whole(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    data = bytes(range(256)) * 12_000
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    name = hashlib.sha256(data).hexdigest()[:32]
    prompt = as_logical_ids([1, 99, 2])
    request = replace(
        text,
        prompt=prompt,
        expanded_prompt=ExpandedIds(prompt),
        images=(ImageRef(url, name),),
        placeholders=(Placeholder(name, 1, 1),),
    )

    async def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        status, content = behaviours["completion"](body)
        placed = {"image": [{"offset": 1, "length": 1}]}
        return status, orjson.dumps({**orjson.loads(content), "mm_placeholders": placed})

    async with faulty(answer) as engine, EngineClient([engine.url], "m", timeout=20) as client:
        await client.generate(request)
    assert engine.generated[0]["content_parts"][0]["url"] == url
    assert "transfer-encoding" not in engine.headers[0]


async def test_a_session_is_named_only_where_affinity_is_wanted(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    async with faulty(behaviours["well"]) as engine:
        for affinity in (False, True):
            async with EngineClient([engine.url], "m", timeout=20, affinity=affinity) as client:
                await client.generate(text)
    assert [headers.get("x-session-id") for headers in engine.headers] == [None, "r"]


async def test_the_key_goes_out_as_a_bearer_token(faulty: Any, behaviours: Any, text: GenerateRequest) -> None:
    async with faulty(behaviours["well"]) as engine:
        async with EngineClient([engine.url], "m", timeout=20, api_key="s3cret") as client:
            await client.check()
            await client.generate(text)
            assert "s3cret" not in repr(client.__dict__)
    assert {headers["authorization"] for headers in engine.headers} == {"Bearer s3cret"}
