"""New weights for a running engine: what a pause does to requests in flight, and which weights gave each token.

The engine here takes a step when the test says so, so that nothing depends on how fast the machine is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.serving.endpoint import create_app
from rollout.serving.engine import Answer, Job, ModelCard, SampledToken, StopConditions, WeightsRefused
from rollout.serving.gate import PauseGate
from rollout.serving.image_pads import ExpandedPrompt
from rollout.serving.protocol import GenerateBody

Body = dict[str, Any]
LENGTH = 4


class Puppet:
    """An engine whose every step is allowed, and then reported."""

    def __init__(self) -> None:
        self.model_card = ModelCard("puppet", Path("puppet"), 64)
        self.allowed = asyncio.Semaphore(0)
        self.written: asyncio.Queue[str] = asyncio.Queue()
        self.prepared: asyncio.Queue[None] = asyncio.Queue()
        self.reloaded: list[Path | None] = []
        self._loop = asyncio.get_running_loop()

    def prepare(self, request: GenerateBody) -> Job:
        self._loop.call_soon_threadsafe(self.prepared.put_nowait, None)
        return _Dance(ExpandedPrompt(request.token_ids, ()), StopConditions(LENGTH, frozenset(), frozenset()), self)

    def reload(self, directory: Path | None) -> None:
        self.reloaded.append(directory)
        if directory == Path("nowhere"):
            raise WeightsRefused("there is nothing")

    def close(self) -> None:
        pass

    async def step(self, times: int = 1) -> list[str]:
        """Let so many tokens be written, and return their versions."""
        for _ in range(times):
            self.allowed.release()
        return [await self.written.get() for _ in range(times)]


@dataclass(frozen=True, slots=True)
class _Dance(Job):
    engine: Puppet

    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        while not answer.finished:
            async with gate.step():
                await self.engine.allowed.acquire()
                answer.add_token(SampledToken(1, 0.0, 1, ()), gate.version)
                self.engine.written.put_nowait(gate.version)


class World:
    """A puppet and its endpoint."""

    def __init__(self, client: httpx.AsyncClient, puppet: Puppet) -> None:
        self.client, self.puppet = client, puppet

    async def ask(self, request_id: str) -> Body:
        sampling = {"temperature": 1, "logprobs": 0}
        return await self.post("/inference/v1/generate", token_ids=[1], sampling_params=sampling, request_id=request_id)

    async def asked(self, request_id: str) -> "asyncio.Task[Body]":
        """A request that has arrived; whether it may begin is up to the gate."""
        task = asyncio.create_task(self.ask(request_id))
        await self.puppet.prepared.get()
        return task

    async def post(self, path: str, status: int = 200, **body: Any) -> Body:
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        answer: Body = response.json()
        return answer

    async def until_paused(self) -> None:
        """Wait until the gate is closed, though perhaps not quiet yet."""
        while True:
            if (await self.client.get("/is_paused")).json() == {"is_paused": True}:
                return
            # Nothing else would give way to the pause: all of this is in one process.
            await asyncio.sleep(0)

    async def push(self, version: str) -> None:
        """What comes between pause and resume."""
        await self.post("/collective_rpc", method="reload_weights")
        await self.post("/update_weight_version", new_version=version)


@asynccontextmanager
async def _world() -> AsyncIterator[World]:
    puppet = Puppet()
    app = create_app(puppet, weight_version="1")
    async with (
        asyncio.timeout(60),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://puppet") as client,
    ):
        yield World(client, puppet)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with _world() as world:
        yield world


def versions(answer: Body) -> list[tuple[str, int, int]]:
    [choice] = answer["choices"]
    return [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]


async def test_keep_freezes_what_is_in_flight_and_goes_on_with_the_new_weights(world: World) -> None:
    flying = await world.asked("flying")
    assert await world.puppet.step(2) == ["1", "1"]
    # The step that is under way when the pause comes is finished first, with the weights that it began with.
    pausing = asyncio.create_task(world.post("/pause?mode=keep"))
    assert await world.puppet.step() == ["1"]
    await pausing
    await world.push("2")
    assert not flying.done()
    await world.post("/resume")
    assert await world.puppet.step() == ["2"]
    answer = await flying
    assert versions(answer) == [("1", 0, 3), ("2", 3, 4)]
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_wait_lets_what_is_in_flight_finish_and_makes_others_wait(world: World) -> None:
    flying = await world.asked("flying")
    await world.puppet.step(2)
    pausing = asyncio.create_task(world.post("/pause?mode=wait"))
    await world.until_paused()
    late = await world.asked("late")
    assert not pausing.done()
    assert await world.puppet.step(2) == ["1", "1"]
    await pausing
    assert versions(await flying) == [("1", 0, LENGTH)]
    await world.push("2")
    await world.post("/resume")
    assert await world.puppet.step(LENGTH) == ["2"] * LENGTH
    assert versions(await late) == [("2", 0, LENGTH)]


async def test_abort_ends_what_is_in_flight_with_its_tokens_so_far(world: World) -> None:
    flying = await world.asked("flying")
    await world.puppet.step(2)
    await world.post("/pause?mode=abort")
    answer = await flying
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert answer["choices"][0]["token_ids"] == [1, 1]
    assert versions(answer) == [("1", 0, 2)]
    late = await world.asked("late")
    await world.push("2")
    await world.post("/resume")
    await world.puppet.step(LENGTH)
    assert versions(await late) == [("2", 0, LENGTH)]


async def test_who_waits_for_the_end_of_a_pause_can_be_aborted(world: World) -> None:
    await world.post("/pause?mode=wait")
    late = await world.asked("late")
    await world.client.post("/inference/v1/abort_requests", json={"request_ids": ["generate-tokens-late"]})
    answer = await late
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert versions(answer) == [("1", 0, 0)]


async def test_what_is_frozen_can_be_aborted_by_another_pause(world: World) -> None:
    flying = await world.asked("flying")
    await world.puppet.step()
    pausing = asyncio.create_task(world.post("/pause?mode=keep"))
    await world.puppet.step()
    await pausing
    await world.post("/pause?mode=abort")
    assert (await flying)["choices"][0]["token_ids"] == [1, 1]


async def test_a_pause_that_a_resume_overtakes_says_so(world: World) -> None:
    flying = await world.asked("flying")
    await world.puppet.step()
    pausing = asyncio.create_task(world.post("/pause?mode=wait", status=409))
    await world.until_paused()
    await world.post("/resume")
    assert "overtaken" in (await pausing)["error"]["message"]
    await world.puppet.step(LENGTH - 1)
    await flying


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/collective_rpc", {"method": "reload_weights"}),
        ("/update_weight_version", {"new_version": "2"}),
    ],
)
async def test_weights_and_their_version_change_only_during_a_pause(world: World, path: str, body: Body) -> None:
    refused = await world.post(path, 400, **body)
    assert "POST /pause" in refused["error"]["message"]
    assert world.puppet.reloaded == []
    assert (await world.client.get("/weight_info")).json() == {"weight_version": "1"}


async def test_a_reload_from_a_directory_and_one_that_fails(world: World) -> None:
    await world.post("/pause?mode=wait")
    await world.post("/collective_rpc", method="reload_weights", kwargs={"weights_path": "somewhere"})
    failed = await world.post("/collective_rpc", 500, method="reload_weights", kwargs={"weights_path": "nowhere"})
    assert failed["error"]["message"] == "there is nothing"
    assert world.puppet.reloaded == [Path("somewhere"), Path("nowhere")]
    assert (await world.client.get("/is_paused")).json() == {"is_paused": True}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/pause?mode=later", {}, "abort|wait|keep"),
        ("/pause?clear_cache=perhaps", {}, "clear_cache"),
        ("/pause?cache=false", {}, "clear_cache"),
        ("/collective_rpc", {"method": "sleep"}, "sleep"),
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights": "x"}}, "kwargs.weights"),
        ("/update_weight_version", {"new_version": 2}, "new_version"),
        ("/update_weight_version", {}, "new_version"),
    ],
)
async def test_what_the_control_surface_does_not_know_is_refused(
    world: World, path: str, body: Body, named: str
) -> None:
    assert named in (await world.post(path, 400, **body))["error"]["message"]


async def test_a_script_is_made_anew_and_its_version_told(body: Any, picture: Any) -> None:
    with EmbeddedServer(EmbeddedSettings(weight_version="1")) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            world = World(client, Puppet())
            await world.post("/pause?mode=abort")
            await world.post("/collective_rpc", 500, method="reload_weights", kwargs={"weights_path": "/nowhere"})
            await world.push("2")
            await world.post("/resume")
            answer = await world.post("/inference/v1/generate", **body([picture("red")]))
            assert versions(answer) == [("2", 0, 2)]
