"""The check of all engines at the start of a run or a worker."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineBroken, EngineRefused, EngineUnavailable, EngineUnreachable, ModelNotServed
from rollout.engine.request import GenerateRequest
from rollout.engine.stand_in import StandInEngine
from tests.unit.engine.faulty import FaultyEngine, client_of, succeed


async def test_the_check_finds_the_shortest_context() -> None:
    first, second = FaultyEngine(succeed), FaultyEngine(succeed)
    second.models = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": 64}]}))
    async with client_of(first, second) as client:
        await client.check()
        assert client.max_model_len == 64


def model_entry(name: str, *, parent: str | None = None, max_model_len: int | None = None) -> dict[str, Any]:
    return {"id": name, "parent": parent, "max_model_len": max_model_len}


@pytest.mark.parametrize(
    ("others", "context_length"),
    [
        pytest.param([model_entry("base", max_model_len=64)], 64, id="its parent has one"),
        pytest.param([model_entry("p", parent="base"), model_entry("base", max_model_len=64)], 64, id="a chain"),
        pytest.param([model_entry("base"), model_entry("unrelated", max_model_len=64)], None, id="no parent has one"),
        pytest.param([], None, id="its parent is not listed"),
        pytest.param([model_entry("p", parent="m"), model_entry("base", parent="p")], None, id="a cycle"),
    ],
)
async def test_an_adapter_has_the_context_of_its_parent(
    others: list[dict[str, Any]], context_length: int | None
) -> None:
    parent = others[0]["id"] if others else "base"
    engine = FaultyEngine(succeed)
    engine.models = (200, orjson.dumps({"data": [*others, model_entry("m", parent=parent)]}))
    async with client_of(engine) as client:
        await client.check()
        assert client.max_model_len == context_length


@pytest.mark.parametrize("length", ["lots", "64", 0, -1, 64.5, True, []])
async def test_a_wrong_length_of_the_context_is_named(length: object) -> None:
    engine = FaultyEngine(succeed)
    engine.models = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": length}]}))
    async with client_of(engine) as client:
        with pytest.raises(EngineRefused, match=re.escape(f"max_model_len {length!r} for the model 'm'")):
            await client.check()


async def test_the_adapter_of_a_recorded_server_has_the_context_of_its_parent() -> None:
    recorded = orjson.loads((Path(__file__).parent / "recorded" / "descriptions.json").read_bytes())
    models = orjson.dumps(recorded["models_with_adapter"])

    async def answer(url: str, body: bytes) -> tuple[int, bytes]:
        return 200, models

    async with EngineClient(["http://a"], "colours", timeout=20, transport=StandInEngine(answer)) as client:
        await client.check()
        assert client.max_model_len == 4096


async def test_one_unreachable_engine_does_not_stop_the_start(text: GenerateRequest) -> None:
    engine = FaultyEngine(succeed)
    async with client_of(engine, urls=["http://unreachable", engine.url]) as client:
        await client.check()
        assert [engine.is_unavailable for engine in client.replicas] == [True, False]
        await client.generate(text)


async def test_a_start_fails_if_no_engine_is_reachable() -> None:
    async with EngineClient(["http://127.0.0.1:1"], "m", timeout=20) as client:
        with pytest.raises(EngineUnreachable, match="Is the engine running"):
            await client.check()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_start_waits_for_an_engine_that_is_not_available_yet(status: int) -> None:
    texts: list[str] = []
    engine = FaultyEngine(succeed)
    async with client_of(engine) as client:
        healthy, engine.models = engine.models, (status, b"not yet")

        def on_wait(text: str) -> None:
            texts.append(text)
            engine.models = healthy

        await client.wait_until_checked(on_wait)
    assert texts[0].startswith("waiting, because no engine can be used yet. Up to 5 retries follow (engine.retries)")
    assert f"answered with status {status}: not yet" in texts[0]
    assert [text.startswith("continues after ") for text in texts[1:]] == [True]


async def test_a_start_fails_after_its_last_try_with_the_engines_error() -> None:
    texts: list[str] = []
    engine = FaultyEngine(succeed)
    async with client_of(engine, retries=2) as client:
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered with status 502: bad gateway"):
            await client.wait_until_checked(texts.append)
    assert engine.paths == 3 * ["/v1/models"]
    assert len(texts) == 1


async def test_a_start_fails_at_its_deadline() -> None:
    engine = FaultyEngine(succeed)
    async with client_of(engine, timeout=0.1, retries=9**9) as client:
        engine.models = (502, b"bad gateway")
        with pytest.raises(EngineUnavailable, match="answered with status 502"):
            await client.wait_until_checked(lambda _: None)


@pytest.mark.parametrize(
    ("models", "error"), [((404, b"no such page"), EngineRefused), ((500, b"out of memory"), EngineBroken)]
)
async def test_a_start_does_not_wait_if_another_try_cannot_fix_the_error(models: Any, error: type[Exception]) -> None:
    texts: list[str] = []
    engine = FaultyEngine(succeed)
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
        ((200, b'{"data": ["m"]}'), EngineRefused),
        ((200, orjson.dumps({"data": [{"id": "m", "max_model_len": "long"}]})), EngineRefused),
        ((404, b"no such page"), EngineRefused),
    ],
)
async def test_a_server_without_the_model_stops_the_start(models: Any, error: type[Exception]) -> None:
    healthy, other = FaultyEngine(succeed), FaultyEngine(succeed)
    other.models = models
    async with client_of(healthy, other) as client:
        with pytest.raises(error):
            await client.check()
