"""New weights for a running engine: what a pause does to requests in flight, and which weights sampled each token.

The engine takes each step when the test allows it, so the speed of the machine does not matter.
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


class SteppedEngine:
    """An engine that waits for permission before each step, and reports the step."""

    def __init__(self) -> None:
        self.model_card = ModelCard("stepped", Path("stepped"), 64)
        self.allowed = asyncio.Semaphore(0)
        self.written: asyncio.Queue[str] = asyncio.Queue()
        self.prepared: asyncio.Queue[None] = asyncio.Queue()
        self.reloaded: list[Path | None] = []
        self._loop = asyncio.get_running_loop()

    def prepare(self, request: GenerateBody) -> Job:
        self._loop.call_soon_threadsafe(self.prepared.put_nowait, None)
        return _SteppedJob(
            ExpandedPrompt(request.token_ids, ()), StopConditions(LENGTH, frozenset(), frozenset()), self
        )

    def reload(self, directory: Path | None) -> None:
        self.reloaded.append(directory)
        if directory == Path("nowhere"):
            raise WeightsRefused("there is nothing")

    def close(self) -> None:
        pass

    async def step(self, times: int = 1) -> list[str]:
        """Allow so many tokens, and return their versions."""
        for _ in range(times):
            self.allowed.release()
        return [await self.written.get() for _ in range(times)]


@dataclass(frozen=True, slots=True)
class _SteppedJob(Job):
    engine: SteppedEngine

    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        while not answer.finished:
            async with gate.step():
                await self.engine.allowed.acquire()
                answer.add_token(SampledToken(1, 0.0, 1, ()), gate.version)
                self.engine.written.put_nowait(gate.version)


class SteppedEngineClient:
    """A client of a stepped engine."""

    def __init__(self, client: httpx.AsyncClient, engine: SteppedEngine) -> None:
        self.client, self.engine = client, engine

    async def ask(self, request_id: str) -> Body:
        sampling = {"temperature": 1, "logprobs": 0}
        return await self.post("/inference/v1/generate", token_ids=[1], sampling_params=sampling, request_id=request_id)

    async def start_request(self, request_id: str) -> "asyncio.Task[Body]":
        """Send a request, and return when it has arrived; the gate decides when it starts."""
        task = asyncio.create_task(self.ask(request_id))
        await self.engine.prepared.get()
        return task

    async def post(self, path: str, status: int = 200, **body: Any) -> Body:
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        answer: Body = response.json()
        return answer

    async def wait_until_paused(self) -> None:
        """Wait until the gate is closed; a step may still run."""
        while True:
            if (await self.client.get("/is_paused")).json() == {"is_paused": True}:
                return
            # The endpoint runs in this event loop, too, so let it run.
            await asyncio.sleep(0)

    async def push(self, version: str) -> None:
        """Load weights and set their version, as a trainer does between pause and resume."""
        await self.post("/collective_rpc", method="reload_weights")
        await self.post("/update_weight_version", new_version=version)


@asynccontextmanager
async def _open_client() -> AsyncIterator[SteppedEngineClient]:
    engine = SteppedEngine()
    app = create_app(engine, weight_version="1")
    async with (
        asyncio.timeout(60),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stepped") as client,
    ):
        yield SteppedEngineClient(client, engine)


@pytest.fixture
async def stepped() -> AsyncIterator[SteppedEngineClient]:
    async with _open_client() as stepped:
        yield stepped


def versions(answer: Body) -> list[tuple[str, int, int]]:
    [choice] = answer["choices"]
    return [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]


async def test_keep_freezes_running_requests_and_they_go_on_with_the_new_weights(stepped: SteppedEngineClient) -> None:
    in_flight = await stepped.start_request("flying")
    assert await stepped.engine.step(2) == ["1", "1"]
    # A step that runs when the pause comes ends first, with the old weights.
    pausing = asyncio.create_task(stepped.post("/pause?mode=keep"))
    assert await stepped.engine.step() == ["1"]
    await pausing
    await stepped.push("2")
    assert not in_flight.done()
    await stepped.post("/resume")
    assert await stepped.engine.step() == ["2"]
    answer = await in_flight
    assert versions(answer) == [("1", 0, 3), ("2", 3, 4)]
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_wait_lets_running_requests_finish_and_makes_new_ones_wait(stepped: SteppedEngineClient) -> None:
    in_flight = await stepped.start_request("flying")
    await stepped.engine.step(2)
    pausing = asyncio.create_task(stepped.post("/pause?mode=wait"))
    await stepped.wait_until_paused()
    waiting = await stepped.start_request("late")
    assert not pausing.done()
    assert await stepped.engine.step(2) == ["1", "1"]
    await pausing
    assert versions(await in_flight) == [("1", 0, LENGTH)]
    await stepped.push("2")
    await stepped.post("/resume")
    assert await stepped.engine.step(LENGTH) == ["2"] * LENGTH
    assert versions(await waiting) == [("2", 0, LENGTH)]


async def test_abort_ends_running_requests_with_their_tokens_so_far(stepped: SteppedEngineClient) -> None:
    in_flight = await stepped.start_request("flying")
    await stepped.engine.step(2)
    await stepped.post("/pause?mode=abort")
    answer = await in_flight
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert answer["choices"][0]["token_ids"] == [1, 1]
    assert versions(answer) == [("1", 0, 2)]
    waiting = await stepped.start_request("late")
    await stepped.push("2")
    await stepped.post("/resume")
    await stepped.engine.step(LENGTH)
    assert versions(await waiting) == [("2", 0, LENGTH)]


async def test_a_request_that_waits_for_the_end_of_a_pause_can_be_aborted(stepped: SteppedEngineClient) -> None:
    await stepped.post("/pause?mode=wait")
    waiting = await stepped.start_request("late")
    await stepped.client.post("/inference/v1/abort_requests", json={"request_ids": ["generate-tokens-late"]})
    answer = await waiting
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert versions(answer) == [("1", 0, 0)]


async def test_a_frozen_request_can_be_aborted_by_another_pause(stepped: SteppedEngineClient) -> None:
    in_flight = await stepped.start_request("flying")
    await stepped.engine.step()
    pausing = asyncio.create_task(stepped.post("/pause?mode=keep"))
    await stepped.engine.step()
    await pausing
    await stepped.post("/pause?mode=abort")
    assert (await in_flight)["choices"][0]["token_ids"] == [1, 1]


async def test_a_resume_ends_a_waiting_pause_with_an_error(stepped: SteppedEngineClient) -> None:
    in_flight = await stepped.start_request("flying")
    await stepped.engine.step()
    pausing = asyncio.create_task(stepped.post("/pause?mode=wait", status=409))
    await stepped.wait_until_paused()
    await stepped.post("/resume")
    assert "replaced the pause" in (await pausing)["error"]["message"]
    await stepped.engine.step(LENGTH - 1)
    await in_flight


@pytest.mark.parametrize(
    ("path", "body"),
    [("/collective_rpc", {"method": "reload_weights"}), ("/update_weight_version", {"new_version": "2"})],
)
async def test_weights_and_their_version_change_only_during_a_pause(
    stepped: SteppedEngineClient, path: str, body: Body
) -> None:
    refused = await stepped.post(path, 400, **body)
    assert "POST /pause" in refused["error"]["message"]
    assert stepped.engine.reloaded == []
    assert (await stepped.client.get("/weight_info")).json() == {"weight_version": "1"}


async def test_a_reload_that_fails_leaves_the_engine_paused(stepped: SteppedEngineClient) -> None:
    await stepped.post("/pause?mode=wait")
    await stepped.post("/collective_rpc", method="reload_weights", kwargs={"weights_path": "somewhere"})
    failed = await stepped.post("/collective_rpc", 500, method="reload_weights", kwargs={"weights_path": "nowhere"})
    assert failed["error"]["message"] == "there is nothing"
    assert stepped.engine.reloaded == [Path("somewhere"), Path("nowhere")]
    assert (await stepped.client.get("/is_paused")).json() == {"is_paused": True}


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
async def test_unknown_control_requests_are_refused(
    stepped: SteppedEngineClient, path: str, body: Body, named: str
) -> None:
    assert named in (await stepped.post(path, 400, **body))["error"]["message"]


async def test_the_embedded_engine_reloads_its_policy_and_reports_the_version(body: Any, picture: Any) -> None:
    with EmbeddedServer(EmbeddedSettings(weight_version="1")) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            stepped = SteppedEngineClient(client, SteppedEngine())
            await stepped.post("/pause?mode=abort")
            await stepped.post("/collective_rpc", 500, method="reload_weights", kwargs={"weights_path": "/nowhere"})
            await stepped.push("2")
            await stepped.post("/resume")
            answer = await stepped.post("/inference/v1/generate", **body([picture("red")]))
            assert versions(answer) == [("2", 0, 2)]
