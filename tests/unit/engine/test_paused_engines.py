"""Engines that refuse new requests while they take new weights, as vLLM 0.33 does."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineAborted, EnginePaused, EngineUnavailable
from rollout.engine.request import GenerateRequest
from tests.unit.engine.faulty import (
    REFUSED_DURING_PAUSE,
    FaultyEngine,
    client_of,
    completed,
    fail_with,
    hang,
    paused_for,
    serving,
    succeed,
)

FOREVER = 1_000_000


@pytest.fixture(autouse=True)
def other_engines_stay_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how fast the machine is."""
    monkeypatch.setattr("rollout.engine.routing._PAUSED_SECONDS", 600.0)


async def test_a_turn_waits_for_a_longer_pause_than_its_retries_allow(text: GenerateRequest) -> None:
    engine = FaultyEngine(paused_for(40))
    async with client_of(engine, retries=0) as client:
        generation = await client.generate(text)
    assert generation.token_ids.tolist() == [5, 6, 7]
    assert len(engine.generated) == 41


async def test_a_pause_is_neither_a_retry_nor_a_failure(text: GenerateRequest) -> None:
    engine, retries = FaultyEngine(paused_for(9)), []
    request = replace(text, on_retry=lambda: retries.append(1))
    async with client_of(engine) as client:
        await client.generate(request)
        (replica,) = client.replicas
    assert (retries, client.retry_count) == ([], 0)
    assert (replica.consecutive_failures, replica.total_ejections, replica.in_flight) == (0, 0, 0)
    assert {body["request_id"] for body in engine.generated} == {"r-0.0"}


async def test_the_metrics_see_each_refusal(text: GenerateRequest) -> None:
    outcomes: list[str] = []
    engine = FaultyEngine(paused_for(2))
    async with client_of(engine, on_try=lambda url, outcome, seconds: outcomes.append(outcome)) as client:
        await client.generate(text)
    assert outcomes == ["EnginePaused", "EnginePaused", "ok"]


async def test_turns_go_to_an_engine_that_is_not_paused(text: GenerateRequest) -> None:
    paused, running = FaultyEngine(paused_for(FOREVER)), FaultyEngine(succeed)
    async with client_of(paused, running, retries=0) as client:
        for _ in range(20):
            await client.generate(text)
    assert (len(paused.generated), len(running.generated)) == (1, 20)


async def test_a_session_with_affinity_goes_to_another_engine_during_a_pause(text: GenerateRequest) -> None:
    first, second = FaultyEngine(succeed), FaultyEngine(succeed)
    async with client_of(first, second, affinity=True, retries=0) as client:
        await client.generate(text)
        usual, other = (first, second) if first.generated else (second, first)
        usual.behave = paused_for(FOREVER)
        await client.generate(text)
        await client.generate(text)
        assert (len(usual.generated), len(other.generated)) == (2, 2)
        usual.behave = succeed
        for replica in client.replicas:
            replica.paused_until = 0.0
        await client.generate(text)
    assert len(usual.generated) == 3


async def test_if_all_engines_are_paused_the_first_one_that_resumes_answers(
    text: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.routing._PAUSED_SECONDS", 0.02)
    paused, resuming = FaultyEngine(paused_for(FOREVER)), FaultyEngine(paused_for(3))
    async with client_of(paused, resuming, retries=0) as client:
        await client.generate(text)
    assert len(resuming.generated) == 4


async def test_a_pause_that_never_ends_fails_the_turn_at_its_time_limit(text: GenerateRequest) -> None:
    engine = FaultyEngine(paused_for(FOREVER))
    async with client_of(engine, timeout=0.1) as client:
        with pytest.raises(EnginePaused) as failed:
            await client.generate(text)
        assert not client.replicas[0].is_unavailable
    message = str(failed.value)
    assert message.startswith("r-0: no answer within 0.1 s (engine.timeout).")
    assert f"{engine.url} refused the request, because it was paused for new weights" in message
    assert "rollout policy push" in message
    assert failed.value.infrastructure
    assert engine.aborted == []


async def test_a_request_that_is_sent_after_the_pause_is_aborted_at_its_time_limit(text: GenerateRequest) -> None:
    engine = FaultyEngine(paused_for(2, then=hang))
    async with client_of(engine, timeout=0.2) as client:
        with pytest.raises(EnginePaused, match="was paused for new weights"):
            await client.generate(text)
    assert engine.aborted == ["generate-tokens-r-0.0"]


async def test_a_cancelled_turn_does_not_wait_for_the_end_of_the_pause(
    text: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.refusals._FIRST_WAIT_SECONDS", 600.0)
    monkeypatch.setattr("rollout.engine.refusals._MAX_WAIT_SECONDS", 600.0)
    engine = FaultyEngine(paused_for(FOREVER))
    async with client_of(engine, timeout=600) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(client.generate, text)
                await engine.arrived.wait()
                group.cancel_scope.cancel()
        assert client.replicas[0].in_flight == 0


async def test_a_failure_of_another_engine_still_counts(text: GenerateRequest) -> None:
    paused, broken = FaultyEngine(paused_for(FOREVER)), FaultyEngine(fail_with(429, FOREVER))
    async with client_of(paused, broken, retries=0) as client:
        with pytest.raises(EngineUnavailable, match="answered with status 429"):
            await client.generate(text)
        assert [replica.consecutive_failures for replica in client.replicas] == [0, 1]


async def test_a_retry_waits_for_a_paused_engine_before_one_that_failed(text: GenerateRequest) -> None:
    failing, paused = FaultyEngine(fail_with(429, FOREVER)), FaultyEngine(paused_for(9))
    async with client_of(failing, paused, retries=1) as client:
        await client.generate(text)
    assert (len(failing.generated), len(paused.generated)) == (1, 10)


async def test_the_error_after_a_pause_is_the_one_that_ended_the_turn(text: GenerateRequest) -> None:
    engine = FaultyEngine(paused_for(3, then=fail_with(429, FOREVER)))
    async with client_of(engine, retries=2) as client:
        with pytest.raises(EngineUnavailable, match="answered with status 429"):
            await client.generate(text)
    assert [body["request_id"] for body in engine.generated][-3:] == ["r-0.0", "r-0.1", "r-0.2"]


async def test_a_turn_that_was_aborted_for_new_weights_waits_for_the_end_of_the_pause(text: GenerateRequest) -> None:
    engine = FaultyEngine(succeed)

    async def abort_and_pause(body: dict[str, Any]) -> tuple[int, bytes]:
        engine.behave = paused_for(9)
        return completed(body, finish_reason="abort")

    engine.behave = abort_and_pause
    async with client_of(engine, retries=1) as client:
        await client.generate(text)
    assert [body["request_id"] for body in engine.generated] == ["r-0.0", *["r-0.1"] * 10]


async def test_a_turn_that_every_update_aborts_still_ends(text: GenerateRequest) -> None:
    engine = FaultyEngine(succeed)

    async def abort_and_pause(body: dict[str, Any]) -> tuple[int, bytes]:
        engine.behave = paused_for(1, then=abort_and_pause)
        return completed(body, finish_reason="abort")

    engine.behave = abort_and_pause
    async with client_of(engine, retries=2) as client:
        with pytest.raises(EngineAborted):
            await client.generate(text)


async def test_an_ejected_engine_that_comes_back_paused_is_waited_for(text: GenerateRequest) -> None:
    engine = FaultyEngine(paused_for(4))
    async with client_of(engine, retries=0) as client:
        client.replicas[0].unavailable_until = 0.0
        await client.generate(text)
        assert not client.replicas[0].is_unavailable


async def test_a_server_that_pauses_and_resumes_answers_every_turn(text: GenerateRequest) -> None:
    refusals_left, refused_often = 40, anyio.Event()
    resumed = anyio.Event()

    async def behave(body: dict[str, Any]) -> tuple[int, bytes]:
        nonlocal refusals_left
        if resumed.is_set():
            return completed(body)
        refusals_left -= 1
        if refusals_left == 0:
            refused_often.set()
        return REFUSED_DURING_PAUSE

    async with serving(behave) as engine, EngineClient([engine.url], "m", timeout=20, retries=0) as client:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(client.generate, text)
            await refused_often.wait()
            resumed.set()
        assert client.replicas[0].answer_count == 8
