"""The first look of a client at its engines, when a run or a worker starts."""

from typing import Any

import orjson
import pytest

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineBroken, EngineRefused, EngineUnavailable, EngineUnreachable, ModelNotServed
from rollout.engine.request import GenerateRequest

UNUSED = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.engine.client._FIRST_RETRY_PAUSE_SECONDS", 0.001)


async def test_checking_learns_the_shortest_context(faulty: Any, behaviours: Any) -> None:
    async with faulty(behaviours["well"]) as first, faulty(behaviours["well"]) as second:
        second.models = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": 64}]}))
        async with EngineClient([first.url, second.url], "m", timeout=20) as client:
            await client.check()
            assert client.max_model_len == 64


async def test_one_engine_that_is_away_does_not_hold_up_the_start(
    faulty: Any, behaviours: Any, text: GenerateRequest
) -> None:
    async with faulty(behaviours["well"]) as engine, EngineClient([UNUSED, engine.url], "m", timeout=20) as client:
        await client.check()
        assert [engine.is_unavailable for engine in client.replicas] == [True, False]
        await client.generate(text)


async def test_no_engine_at_all_does() -> None:
    async with EngineClient([UNUSED], "m", timeout=20) as client:
        with pytest.raises(EngineUnreachable, match="Is it running"):
            await client.check()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_start_waits_for_an_engine_that_is_not_available_yet(faulty: Any, behaviours: Any, status: int) -> None:
    texts: list[str] = []
    async with faulty(behaviours["well"]) as engine, EngineClient([engine.url], "m", timeout=20) as client:
        sound, engine.models = engine.models, (status, b"not yet")

        def on_wait(text: str) -> None:
            texts.append(text)
            engine.models = sound

        await client.wait_until_checked(on_wait)
    assert texts[0].startswith("waiting because no engine can be used yet. Up to 5 further tries (engine.retries)")
    assert f"answered {status}: not yet" in texts[0]
    assert [text.startswith("goes on after ") for text in texts[1:]] == [True]


async def test_a_start_ends_after_its_last_try_with_what_the_engine_said(faulty: Any, behaviours: Any) -> None:
    texts: list[str] = []
    async with faulty(behaviours["well"]) as engine, EngineClient([engine.url], "m", timeout=20, retries=2) as client:
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered 502: bad gateway"):
            await client.wait_until_checked(texts.append)
    assert len(engine.headers) == 3
    assert len(texts) == 1


async def test_a_start_ends_at_its_deadline(faulty: Any, behaviours: Any) -> None:
    async with (
        faulty(behaviours["well"]) as engine,
        EngineClient([engine.url], "m", timeout=0.1, retries=9**9) as client,
    ):
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered 502"):
            await client.wait_until_checked(lambda _: None)


@pytest.mark.parametrize(
    ("models", "error"), [((404, b"no such page"), EngineRefused), ((500, b"out of memory"), EngineBroken)]
)
async def test_a_start_does_not_wait_for_what_another_try_would_not_mend(
    faulty: Any, behaviours: Any, models: Any, error: type[Exception]
) -> None:
    texts: list[str] = []
    async with faulty(behaviours["well"]) as engine, EngineClient([engine.url], "m", timeout=20) as client:
        engine.models = models
        with pytest.raises(error):
            await client.wait_until_checked(texts.append)
    assert not texts


@pytest.mark.parametrize(
    ("models", "error"),
    [
        ((200, orjson.dumps({"data": [{"id": "other"}]})), ModelNotServed),
        ((200, b"<html>"), EngineRefused),
        ((404, b"no such page"), EngineRefused),
    ],
)
async def test_a_server_of_something_else_holds_up_the_start(
    faulty: Any, behaviours: Any, models: Any, error: type[Exception]
) -> None:
    async with faulty(behaviours["well"]) as sound, faulty(behaviours["well"]) as other:
        other.models = models
        async with EngineClient([sound.url, other.url], "m", timeout=20) as client:
            with pytest.raises(error):
                await client.check()
