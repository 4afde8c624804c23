"""The client with faulty engines: what it tries again, which errors are final, and what it sends."""

import asyncio
import contextlib
import re
from dataclasses import replace
from typing import Any

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from rollout.engine import client as module
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineBroken, EngineRefused, EngineTimeout, EngineUnavailable
from rollout.engine.request import GenerateRequest
from tests.unit.engine.faulty import FaultyEngine, client_of, close, completed, fail_with, hang, serving, succeed


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_temporary_error_is_tried_again_and_answered_once(text: GenerateRequest, status: int) -> None:
    engine = FaultyEngine(fail_with(status, 2))
    async with client_of(engine) as client:
        generation = await client.generate(text)
    assert generation.token_ids.tolist() == [5, 6, 7]
    assert [body["request_id"] for body in engine.generated] == ["r-0.0", "r-0.1", "r-0.2"]
    assert len({orjson.dumps({**body, "request_id": ""}) for body in engine.generated}) == 1


@pytest.mark.parametrize(("status", "error"), [(400, EngineRefused), (404, EngineRefused), (500, EngineBroken)])
async def test_an_error_that_another_try_cannot_fix_is_final(
    text: GenerateRequest, status: int, error: type[Exception]
) -> None:
    engine = FaultyEngine(fail_with(status, 9))
    async with client_of(engine) as client:
        with pytest.raises(error, match=f"at {engine.url}/.+ answered with status {status}: test error {status}"):
            await client.generate(text)
    assert len(engine.generated) == 1


@pytest.mark.parametrize(("status", "fix"), [(401, "engine.api_key_env"), (403, "--enable-scale-out")])
async def test_a_refusal_says_how_to_fix_it(text: GenerateRequest, status: int, fix: str) -> None:
    engine = FaultyEngine(fail_with(status, 9))
    async with client_of(engine) as client:
        with pytest.raises(EngineRefused, match=re.escape(fix)):
            await client.generate(text)


_NO_BIAS = "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."
"""The text of vLLM, whose error names no parameter."""
_NO_SUCH_TOKEN = "token_id(s) [9] in logit_bias contain out-of-vocab token ids. Vocabulary size: 9"


def refusing_biases(message: str, param: str | None = None) -> Any:
    async def behave(body: dict[str, Any]) -> Any:
        if not body["sampling_params"].keys() & {"logit_bias", "min_p"}:
            return completed(body)
        return 400, orjson.dumps({"error": {"message": message, "param": param}})

    return behave


@pytest.mark.parametrize(("message", "param"), [(_NO_BIAS, None), (_NO_SUCH_TOKEN, "logit_bias")])
async def test_an_engine_that_cannot_ban_gets_no_bans_and_the_answer_says_so(
    text: GenerateRequest, message: str, param: str | None
) -> None:
    banning = replace(text, banned_ids=(9, 10))
    engine = FaultyEngine(refusing_biases(message, param))
    async with client_of(engine) as client:
        with capture_logs() as logs:
            generations = [await client.generate(banning) for _ in range(2)]
    assert [generation.banned_ids for generation in generations] == [(), ()]
    assert ["logit_bias" in body["sampling_params"] for body in engine.generated] == [True, False, False]
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert message in warning["because"]


async def test_an_engine_that_can_ban_gets_the_bans(text: GenerateRequest) -> None:
    engine = FaultyEngine(succeed)
    async with client_of(engine) as client:
        generation = await client.generate(replace(text, banned_ids=(9, 10)))
    assert generation.banned_ids == (9, 10)


async def test_a_refusal_of_the_users_sampling_key_is_final(text: GenerateRequest) -> None:
    asked = replace(text, sampling={**text.sampling, "min_p": 0.1}, banned_ids=(9,))
    engine = FaultyEngine(refusing_biases(_NO_BIAS))
    async with client_of(engine) as client:
        with pytest.raises(EngineRefused, match="min_p and logit_bias"):
            await client.generate(asked)
    assert ["logit_bias" in body["sampling_params"] for body in engine.generated] == [True, False]


async def test_retries_end(text: GenerateRequest) -> None:
    engine = FaultyEngine(fail_with(503, 99))
    async with client_of(engine, retries=2) as client:
        with pytest.raises(EngineUnavailable):
            await client.generate(text)
    assert len(engine.generated) == 3


async def test_after_a_broken_connection_another_engine_is_tried(text: GenerateRequest) -> None:
    broken, sound = FaultyEngine(close), FaultyEngine(succeed)
    async with client_of(broken, sound) as client:
        for _ in range(20):
            await client.generate(text)
    assert len(sound.generated) == 20
    # Three failures in a row ejected it.
    assert len(broken.generated) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_an_engine_that_refuses_every_request_does_not_get_every_turn(text: GenerateRequest, status: int) -> None:
    broken, sound = FaultyEngine(fail_with(status, 99)), FaultyEngine(succeed)
    async with client_of(broken, sound) as client:
        for _ in range(20):
            with contextlib.suppress(EngineBroken, EngineRefused):
                await client.generate(text)
    assert (len(broken.generated), len(sound.generated)) == (3, 17)


async def test_an_engine_that_works_again_is_used_again(text: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.engine.routing._MIN_EJECTION_SECONDS", 0.02)
    first, second = FaultyEngine(close), FaultyEngine(succeed)
    first.models = (503, b"")
    async with client_of(first, second) as client:
        for _ in range(10):
            await client.generate(text)
        assert client.replicas[0].is_unavailable
        tried = len(first.generated)
        first.behave = succeed
        # Its /v1/models still fails, so nothing is sent to it.
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


async def test_a_try_that_takes_too_long_is_aborted_and_repeated_elsewhere(text: GenerateRequest) -> None:
    stuck, sound = FaultyEngine(hang), FaultyEngine(succeed)
    async with client_of(stuck, sound, request_timeout=0.1) as client:
        await client.generate(text)
    assert stuck.aborted == ["generate-tokens-r-0.0"]
    assert [body["request_id"] for body in sound.generated] == ["r-0.1"]


async def test_a_turn_ends_at_its_deadline_despite_retries(text: GenerateRequest) -> None:
    stuck = FaultyEngine(hang)
    async with client_of(stuck, timeout=0.2) as client:
        with pytest.raises(EngineTimeout, match=r"engine\.(request_)?timeout"):
            await client.generate(text)
    assert stuck.aborted == ["generate-tokens-r-0.0"]


async def test_cancellation_aborts_on_the_server(text: GenerateRequest) -> None:
    stuck = FaultyEngine(hang)
    async with client_of(stuck) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.generate, text)
            await stuck.arrived.wait()
            group.cancel_scope.cancel()
        assert client.replicas[0].in_flight == 0
    assert stuck.aborted == ["generate-tokens-r-0.0"]


async def test_cancellation_does_not_wait_for_an_engine_that_is_silent(
    text: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ABORT_TIMEOUT", 0.05)

    class SilentEngine(FaultyEngine):
        async def answer(self, path: str, body: bytes) -> None:
            await asyncio.sleep(3600)

    async with client_of(SilentEngine(hang)) as client:
        with anyio.move_on_after(0.1) as scope:
            await client.generate(text)
    assert scope.cancelled_caught


async def test_the_session_is_sent_only_with_affinity(text: GenerateRequest) -> None:
    async with serving(succeed) as engine:
        for affinity in (False, True):
            async with EngineClient([engine.url], "m", timeout=20, affinity=affinity) as client:
                await client.generate(text)
    assert [headers.get("x-session-id") for headers in engine.headers] == [None, "r"]
