"""Loading new weights into an engine: the order of the steps, and the state of the engine if one of them fails."""

import asyncio
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from rollout.engine.errors import EngineBroken, EngineError, EngineMismatch, EngineUnreachable
from rollout.engine.stand_in import StandInEngine
from rollout.engine.weight_updates import EngineState, NotUpdatable, fetch_engine_state, update_weights
from rollout.records.versions import OnUpdate

URL = "http://engine"
WEIGHTS = Path("/runs/one/policy")
PAUSE = "/pause?mode={}&clear_cache=false"
RELOAD = f'/collective_rpc reload_weights {{"weights_path":"{WEIGHTS}"}}'


class ControlledEngine:
    """An engine that records its requests, and fails where a test says so."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.failing: dict[str, Any] = {}
        self.version, self.paused = "7", False
        self._transport = StandInEngine(self.answer)

    async def push(self, mode: OnUpdate = "wait", *, unchanged: bool = True) -> None:
        await update_weights(
            self._transport, URL, weights_directory=WEIGHTS, version="8", mode=mode, weights_unchanged=lambda: unchanged
        )

    async def state(self) -> EngineState:
        return await fetch_engine_state(self._transport, URL)

    async def answer(self, url: str, body: bytes) -> tuple[int, bytes]:
        path = url.removeprefix(URL)
        parameters = orjson.loads(body) if body else {}
        match path:
            case "/collective_rpc":
                request = f"{path} {parameters['method']} {orjson.dumps(parameters['kwargs']).decode()}"
            case "/update_weight_version":
                request = f"{path} {parameters['new_version']}"
            case _:
                request = path
        self.requests.append(request)
        failure = self.failing.get(request, self.failing.get(path))
        if failure == "hang":
            await asyncio.sleep(3600)
        if failure == "die":
            raise EngineUnreachable("the connection was closed")
        if failure is not None:
            answer: tuple[int, bytes] = failure.pop(0)
            return answer
        if path.startswith("/pause"):
            self.paused = True
        if path == "/resume":
            self.paused = False
        if path == "/update_weight_version":
            self.version = parameters["new_version"]
        answers = {"/weight_info": {"weight_version": self.version}, "/is_paused": {"is_paused": self.paused}}
        return 200, orjson.dumps(answers.get(path, {"success": True}))


@pytest.fixture
def engine() -> ControlledEngine:
    return ControlledEngine()


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
async def test_the_old_version_is_cleared_before_the_reload_and_the_new_one_is_set_after_it(
    engine: ControlledEngine, mode: OnUpdate
) -> None:
    await engine.push(mode)
    assert engine.requests == [
        PAUSE.format(mode),
        "/update_weight_version 8-loading",
        RELOAD,
        "/reset_encoder_cache",
        "/reset_prefix_cache",
        "/update_weight_version 8",
        "/resume",
    ]
    assert await engine.state() == EngineState("8", paused=False)


async def test_an_engine_that_fails_before_the_reload_keeps_its_weights(engine: ControlledEngine) -> None:
    engine.failing = {PAUSE.format("wait"): "die"}
    with pytest.raises(EngineUnreachable):
        await engine.push()
    assert engine.requests == [PAUSE.format("wait"), "/resume"]
    assert await engine.state() == EngineState("7", paused=False)


async def test_a_pause_that_takes_too_long_is_cancelled(engine: ControlledEngine) -> None:
    engine.failing = {PAUSE.format("wait"): "hang"}
    with anyio.move_on_after(0.3) as scope:
        await engine.push()
    assert scope.cancelled_caught
    assert engine.requests == [PAUSE.format("wait"), "/resume"]


@pytest.mark.parametrize("failure", ["die", [(500, b"no such file")]])
async def test_an_engine_whose_reload_failed_stays_paused_without_a_version(
    engine: ControlledEngine, failure: Any
) -> None:
    engine.failing = {"/collective_rpc": failure}
    with pytest.raises((EngineBroken, EngineUnreachable)):
        await engine.push("keep")
    assert engine.requests == [
        PAUSE.format("keep"),
        "/update_weight_version 8-loading",
        RELOAD,
        PAUSE.format("abort"),  # so that no request waits for the paused engine
    ]
    assert await engine.state() == EngineState("8-loading", paused=True)


async def test_an_engine_that_may_have_read_other_weights_gets_no_version(engine: ControlledEngine) -> None:
    with pytest.raises(EngineMismatch, match="was replaced while"):
        await engine.push(unchanged=False)
    assert "/update_weight_version 8" not in engine.requests
    assert await engine.state() == EngineState("8-loading", paused=True)


@pytest.mark.parametrize(("mode", "times"), [("keep", 1), ("wait", 3), ("abort", 3)])
async def test_the_prefix_cache_is_reset_until_it_is_empty_except_in_mode_keep(
    engine: ControlledEngine, mode: OnUpdate, times: int
) -> None:
    held, free = (200, b'{"success":false}'), (200, b'{"success":true}')
    engine.failing = {"/reset_prefix_cache": [held, held, free]}
    await engine.push(mode)
    assert engine.requests.count("/reset_prefix_cache") == times
    assert engine.version == "8"


@pytest.mark.parametrize("answer", [b"<html>", b"[]"])
async def test_an_engine_that_does_not_report_whether_its_cache_is_empty_gets_no_version(
    engine: ControlledEngine, answer: bytes
) -> None:
    engine.failing = {"/reset_prefix_cache": [(200, answer)]}
    with pytest.raises(EngineMismatch, match="does not report whether it emptied"):
        await engine.push()
    assert await engine.state() == EngineState("8-loading", paused=True)


async def test_the_error_for_missing_routes_says_how_to_get_them(engine: ControlledEngine) -> None:
    engine.failing = {"/weight_info": [(404, b'{"detail":"Not Found"}')]}
    with pytest.raises(NotUpdatable, match="VLLM_SERVER_DEV_MODE=1"):
        await engine.state()


async def test_a_version_in_another_form_is_a_mismatch(engine: ControlledEngine) -> None:
    engine.failing = {"/weight_info": [(200, b"[]")]}
    with pytest.raises(EngineMismatch, match="weight"):
        await engine.state()


async def test_an_error_of_the_clean_up_does_not_hide_why_the_update_failed(
    engine: ControlledEngine,
) -> None:
    engine.failing = {RELOAD: [(500, b"the disk is gone")], PAUSE.format("abort"): "die"}
    with pytest.raises(EngineError, match="the disk is gone"):
        await engine.push()
