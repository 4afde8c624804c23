"""Which engines get the seed of a request: it can end vLLM on a CPU. The descriptions are those of a real vLLM 0.32."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from rollout.engine.errors import EngineUnreachable
from rollout.engine.request import GenerateRequest
from rollout.engine.seeds import find_seed_problem
from rollout.engine.stand_in import StandInEngine
from tests.unit.engine.faulty import Answer, FaultyEngine, client_of, close, succeed

RECORDED: dict[str, Any] = orjson.loads((Path(__file__).parent / "recorded" / "descriptions.json").read_bytes())
SERVER_INFO = "/server_info?config_format=json"
METRICS: str = RECORDED["metrics"]
SMALL_BLOCK_METRICS = METRICS.replace(',block_size="128"', ',block_size="16"')
GPU_METRICS = SMALL_BLOCK_METRICS.replace('kv_cache_memory_bytes="1073741824"', 'kv_cache_memory_bytes="None"')
LARGE_BLOCK_METRICS = METRICS.replace('kv_cache_memory_bytes="1073741824"', 'kv_cache_memory_bytes="None"')
CHOSEN_BLOCK_METRICS = METRICS.replace('user_specified_block_size="False"', 'user_specified_block_size="True"')
UNKNOWN_METRICS = CHOSEN_BLOCK_METRICS.replace("1073741824", "None")


@pytest.fixture
def seeded(text: GenerateRequest) -> GenerateRequest:
    return replace(text, sampling={**text.sampling, "seed": 7})


def vllm(*, version: str = "0.32.0", metrics: str | None = METRICS, device: str | None = None) -> FaultyEngine:
    """Return an engine that describes itself as vLLM does; a device is reported only in vLLM's development mode."""
    engine = FaultyEngine(succeed)
    engine.routes["/version"] = (200, orjson.dumps({"version": version}))
    if metrics is not None:
        engine.routes["/metrics"] = (200, metrics.encode())
    if device is not None:
        info = {**RECORDED["server_info"]["vllm_config"], "device_config": {"device": device}}
        engine.routes[SERVER_INFO] = (200, orjson.dumps({"vllm_config": info}))
    return engine


def seeds(engine: FaultyEngine) -> list[int | None]:
    return [body["sampling_params"].get("seed") for body in engine.generated]


async def sent_seed(engine: FaultyEngine, request: GenerateRequest) -> int | None:
    async with client_of(engine) as client:
        await client.generate(request)
    return seeds(engine)[0]


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(lambda: vllm(device="cpu"), id="the device is reported"),
        pytest.param(lambda: vllm(metrics=None, device="cpu"), id="only the device is reported"),
        pytest.param(lambda: vllm(version="0.32.0+cpu", metrics=None), id="a build for CPUs"),
        pytest.param(lambda: vllm(metrics=LARGE_BLOCK_METRICS), id="the block size of a CPU"),
        pytest.param(lambda: vllm(metrics=CHOSEN_BLOCK_METRICS), id="a cache of whole GiB"),
        pytest.param(lambda: vllm(metrics=SMALL_BLOCK_METRICS), id="a cache of whole GiB with the block size of a GPU"),
        pytest.param(lambda: vllm(metrics=GPU_METRICS + METRICS), id="one of several caches"),
    ],
)
async def test_vllm_on_a_cpu_gets_no_seed(seeded: GenerateRequest, engine: Any) -> None:
    assert await sent_seed(engine(), seeded) is None


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(lambda: vllm(metrics=GPU_METRICS), id="the block size of a GPU"),
        pytest.param(lambda: vllm(metrics=METRICS, device="cuda"), id="the device is reported, despite all marks"),
        pytest.param(lambda: vllm(version="0.32.0+cu130", metrics=None), id="a build for GPUs without metrics"),
        pytest.param(lambda: vllm(metrics=UNKNOWN_METRICS), id="a block size that the user chose"),
        pytest.param(lambda: vllm(metrics="<html>"), id="a page in the place of metrics"),
        pytest.param(lambda: vllm(version="rollout-0.1.0", metrics=None), id="one of our engines"),
        pytest.param(lambda: FaultyEngine(succeed), id="no description at all"),
    ],
)
async def test_other_engines_get_the_seed(seeded: GenerateRequest, engine: Any) -> None:
    assert await sent_seed(engine(), seeded) == 7


@pytest.mark.parametrize("status", [401, 403, 404, 405, 429, 500, 502, 503, 504])
async def test_a_route_that_a_proxy_closed_says_nothing(seeded: GenerateRequest, status: int) -> None:
    engine = FaultyEngine(succeed)
    engine.routes = dict.fromkeys(("/version", "/metrics", SERVER_INFO), (status, b"closed"))
    assert await sent_seed(engine, seeded) == 7


@pytest.mark.parametrize("body", [b"[]", b"null", b'{"version": 3}', b'{"vllm_config": "text"}', b"<html>", b""])
async def test_a_description_in_another_form_says_nothing(seeded: GenerateRequest, body: bytes) -> None:
    engine = FaultyEngine(succeed)
    engine.routes = dict.fromkeys(("/version", "/metrics", SERVER_INFO), (200, body))
    assert await sent_seed(engine, seeded) == 7


async def test_the_usual_server_with_a_gpu_is_not_asked_for_its_whole_configuration(seeded: GenerateRequest) -> None:
    engine = vllm(metrics=GPU_METRICS, device="cuda")
    await sent_seed(engine, seeded)
    assert engine.paths == ["/version", "/metrics", "/inference/v1/generate"]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.0, "seed": None}])
async def test_an_engine_is_not_asked_without_a_seed(text: GenerateRequest, sampling: dict[str, Any]) -> None:
    engine = vllm(device="cpu")
    async with client_of(engine) as client:
        await client.generate(replace(text, sampling=sampling))
    assert engine.paths == ["/inference/v1/generate"]


async def test_an_engine_is_asked_once_for_many_requests_at_the_same_time(seeded: GenerateRequest) -> None:
    engine = vllm(device="cpu")
    async with client_of(engine) as client, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(client.generate, seeded)
    assert seeds(engine) == [None] * 20
    assert engine.paths.count("/version") == 1


async def test_the_first_requests_are_spread_over_the_engines(seeded: GenerateRequest) -> None:
    first, second = vllm(device="cpu"), vllm(device="cpu")
    async with client_of(first, second) as client, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(client.generate, seeded)
    assert (len(first.generated), len(second.generated)) == (10, 10)


async def test_each_engine_of_a_client_is_asked(seeded: GenerateRequest) -> None:
    cpu, gpu = vllm(device="cpu"), vllm(metrics=GPU_METRICS)
    async with client_of(cpu, gpu) as client:
        for _ in range(4):
            await client.generate(seeded)
    assert seeds(cpu) == [None, None]
    assert seeds(gpu) == [7, 7]


async def test_a_client_warns_once_and_says_which_engine_why_and_what_to_do(seeded: GenerateRequest) -> None:
    first, second = vllm(device="cpu"), vllm(version="0.32.0+cpu")
    async with client_of(first, second) as client:
        with capture_logs() as logs:
            for _ in range(4):
                await client.generate(seeded)
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["engine"] == first.url
    assert warning["because"] == "/server_info reports the device cpu"
    assert "engine.sampling.seed" in warning["fix"]


async def test_the_rest_of_the_sampling_is_sent(seeded: GenerateRequest) -> None:
    engine = vllm(device="cpu")
    async with client_of(engine) as client:
        await client.generate(seeded)
    assert engine.generated[0]["sampling_params"] == {
        "temperature": 0.0,
        "max_tokens": 8,
        "logprobs": 0,
        "stop_token_ids": [7],
    }


async def test_an_engine_that_comes_back_is_asked_again(
    seeded: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.routing._MIN_EJECTION_SECONDS", 0.001)
    engine = vllm(metrics=GPU_METRICS)

    async def restart_on_a_cpu_after_three_failures(body: dict[str, Any]) -> None:
        if len(engine.generated) == 4:
            engine.routes, engine.behave = vllm(device="cpu").routes, succeed
        await close(body)

    async with client_of(engine, retries=50) as client:
        await client.generate(seeded)
        engine.behave = restart_on_a_cpu_after_three_failures
        await client.generate(seeded)
    assert seeds(engine) == [7, 7, 7, 7, None]


@pytest.mark.parametrize("status", [429, 503])
async def test_another_route_decides_if_one_is_busy(seeded: GenerateRequest, status: int) -> None:
    engine = vllm(device="cpu")
    engine.routes["/metrics"] = (status, b"busy")
    assert await sent_seed(engine, seeded) is None


async def test_routes_that_cannot_be_reached_say_nothing() -> None:
    async def refuse_connection(url: str, body: bytes) -> tuple[int, bytes]:
        raise EngineUnreachable(url)

    assert await find_seed_problem(StandInEngine(refuse_connection), "http://a") is None


class SilentRoute(FaultyEngine):
    """An engine that never answers on one route."""

    silent_route: str

    async def answer(self, path: str, body: bytes) -> Answer | None:
        if path == self.silent_route:
            self.paths.append(path)
            await asyncio.sleep(3600)
        return await super().answer(path, body)


def silent(route: str) -> SilentRoute:
    engine = SilentRoute(succeed)
    engine.routes = vllm().routes
    engine.silent_route = route
    return engine


async def test_an_engine_that_does_not_describe_itself_in_time_gets_the_seed_and_is_asked_once(
    seeded: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.seeds._DEADLINE_SECONDS", 0.05)
    engine = silent("/metrics")
    async with client_of(engine, retries=0) as client:
        await client.generate(seeded)
        await client.generate(seeded)
    assert seeds(engine) == [7, 7]
    assert engine.paths.count("/metrics") == 1


async def test_the_marks_count_if_the_device_is_not_reported_in_time(
    seeded: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.seeds._DEADLINE_SECONDS", 0.05)
    assert await sent_seed(silent(SERVER_INFO), seeded) is None
