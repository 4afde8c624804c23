"""The first look of a client at its engines, when a run or a worker starts."""

from typing import Any

import orjson
import pytest

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineBroken, EngineRefused, EngineUnavailable, EngineUnreachable, ModelNotServed
from rollout.engine.request import GenerateRequest
from tests.unit.engine.faulty import FaultyEngine, client_of, well


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.engine.client._FIRST_RETRY_PAUSE_SECONDS", 0.001)


async def test_checking_learns_the_shortest_context() -> None:
    first, second = FaultyEngine(well), FaultyEngine(well)
    second.models = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": 64}]}))
    async with client_of(first, second) as client:
        await client.check()
        assert client.max_model_len == 64


async def test_one_engine_that_is_away_does_not_hold_up_the_start(text: GenerateRequest) -> None:
    engine = FaultyEngine(well)
    async with client_of(engine, urls=["http://away", engine.url]) as client:
        await client.check()
        assert [engine.is_unavailable for engine in client.replicas] == [True, False]
        await client.generate(text)


async def test_no_engine_at_all_does() -> None:
    async with EngineClient(["http://127.0.0.1:1"], "m", timeout=20) as client:
        with pytest.raises(EngineUnreachable, match="Is the engine running"):
            await client.check()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_start_waits_for_an_engine_that_is_not_available_yet(status: int) -> None:
    texts: list[str] = []
    engine = FaultyEngine(well)
    async with client_of(engine) as client:
        sound, engine.models = engine.models, (status, b"not yet")

        def on_wait(text: str) -> None:
            texts.append(text)
            engine.models = sound

        await client.wait_until_checked(on_wait)
    assert texts[0].startswith("waiting, because no engine can be used yet. Up to 5 retries follow (engine.retries)")
    assert f"answered with status {status}: not yet" in texts[0]
    assert [text.startswith("continues after ") for text in texts[1:]] == [True]


async def test_a_start_ends_after_its_last_try_with_what_the_engine_said() -> None:
    texts: list[str] = []
    engine = FaultyEngine(well)
    async with client_of(engine, retries=2) as client:
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered with status 502: bad gateway"):
            await client.wait_until_checked(texts.append)
    assert engine.paths == 3 * ["/v1/models"]
    assert len(texts) == 1


async def test_a_start_ends_at_its_deadline() -> None:
    engine = FaultyEngine(well)
    async with client_of(engine, timeout=0.1, retries=9**9) as client:
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered with status 502"):
            await client.wait_until_checked(lambda _: None)


@pytest.mark.parametrize(
    ("models", "error"), [((404, b"no such page"), EngineRefused), ((500, b"out of memory"), EngineBroken)]
)
async def test_a_start_does_not_wait_for_what_another_try_would_not_mend(models: Any, error: type[Exception]) -> None:
    texts: list[str] = []
    engine = FaultyEngine(well)
    async with client_of(engine) as client:
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
async def test_a_server_of_something_else_holds_up_the_start(models: Any, error: type[Exception]) -> None:
    sound, other = FaultyEngine(well), FaultyEngine(well)
    other.models = models
    async with client_of(sound, other) as client:
        with pytest.raises(error):
            await client.check()
