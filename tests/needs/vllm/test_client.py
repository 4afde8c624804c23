"""What the client promises and only a real engine can test: aborts, cancellation, a full context, the API key."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest

from renderers_adapter.tokens import ExpandedIds, as_logical_ids
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineAborted, EngineRefused
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.request import GenerateRequest
from rollout.engine.weight_updates import fetch_engine_state
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.testing import play

TASK = Task(id="000000", index=0, seed=7)
ENDLESS = 30_000
TOKENS = "generation_tokens_total"
WORDS = tuple(range(300, 364))


def endless(request_id: str) -> GenerateRequest:
    """Return a request whose answer takes many seconds."""
    prompt = as_logical_ids(WORDS)
    return GenerateRequest(
        request_id=request_id,
        session_id=request_id,
        prompt=prompt,
        images=(),
        expanded_prompt=ExpandedIds(prompt),
        known_token_count=0,
        placeholders=(),
        pad_id=None,
        sampling={"temperature": 0.0, "max_tokens": ENDLESS, "ignore_eos": True},
        stop_token_ids=(),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_banned_tokens_are_not_sampled_and_processed_logprobs_are_those_without_them(
    fleet: Mapping[str, Any], temperature: float
) -> None:
    """The reference is the server's log-probs of the next token without a ban."""
    live = fleet["qwen3-vl"]
    sampling = {"temperature": temperature, "max_tokens": 1}
    with live.http() as server:
        body = {"token_ids": list(WORDS), "sampling_params": {**sampling, "logprobs": 20}}
        answer = server.post("/inference/v1/generate", json=body).raise_for_status().json()
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    probabilities = {entry["token_id"]: math.exp(entry["logprob"]) for entry in top}
    banned_ids = tuple(sorted(probabilities, key=lambda token: -probabilities[token])[:4])
    left = 1 - sum(probabilities[token] for token in banned_ids)
    async with EngineClient([live.url], "tiny", timeout=120) as engine:
        for number in range(20):
            request = replace(endless(f"banned-{temperature}-{number}"), sampling=sampling, banned_ids=banned_ids)
            generation = await engine.generate(request)
            (token,), (logprob,) = generation.token_ids.tolist(), generation.logprobs.tolist()
            assert token not in banned_ids
            if token in probabilities:
                assert logprob == pytest.approx(math.log(probabilities[token] / left), abs=1e-4)


def abort(live: Any, request_id: str) -> None:
    with live.http() as server:
        server.post("/inference/v1/abort_requests", json={"request_ids": [request_id]}).raise_for_status()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def wait_until_sampling(live: Any) -> float:
    """Wait until the server samples tokens; return how many it had sampled before."""
    before: float = live.metric(TOKENS)
    await anyio.to_thread.run_sync(wait_for, lambda: live.metric(TOKENS) > before)
    return before


async def wait_until_idle(live: Any) -> None:
    await anyio.to_thread.run_sync(wait_for, lambda: live.metric("num_requests_running") == 0)


async def test_a_cancelled_turn_stops_on_the_server(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen3-vl"]
    await wait_until_idle(live)
    async with EngineClient([live.url], "tiny", timeout=120) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.generate, endless("cancelled"))
            before = await wait_until_sampling(live)
            group.cancel_scope.cancel()
        await wait_until_idle(live)
    assert live.metric(TOKENS) - before < ENDLESS


async def test_an_abort_uses_the_request_name_of_the_engine(fleet: Mapping[str, Any]) -> None:
    """An abort by name reaches a request whose connection stays open, as it does behind a proxy."""
    live = fleet["qwen3-vl"]
    async with EngineClient([live.url], "tiny", timeout=120, retries=0) as client:

        async def generate() -> None:
            with pytest.raises(EngineAborted):
                await client.generate(endless("aborted"))

        async with anyio.create_task_group() as group:
            group.start_soon(generate)
            await wait_until_sampling(live)
            await anyio.to_thread.run_sync(abort, live, "generate-tokens-aborted.0")


async def test_a_try_that_takes_too_long_is_aborted_and_the_turn_ends_in_time(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen3-vl"]
    async with EngineClient([live.url], "tiny", timeout=60, request_timeout=1, retries=1) as client:
        with pytest.raises(Exception, match=r"engine\.request_timeout"):
            await client.generate(endless("slow"))
    await wait_until_idle(live)


async def test_a_conversation_longer_than_the_servers_context_is_unscored(
    fleet: Mapping[str, Any], policy_for: Any
) -> None:
    class Chatter(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            messages: list[Any] = []
            while True:
                messages.append({"role": "user", "content": "0 1 2 3 4 5 6 7 8 9 " * 400})
                messages.append((await model.chat(messages)).message)

    async with policy_for(fleet["qwen3-vl"], allowed_token_ids=[300], max_tokens=1) as policy:
        assert policy.engine.max_model_len == 32768
        trajectory = (await play(Chatter(EnvironmentSettings()), TASK, policy=policy)).trajectory
    assert (trajectory.status, trajectory.limit) == (RolloutStatus.UNSCORED, RolloutLimit.CONTEXT)
    assert len(trajectory.steps) > 3


async def test_a_server_with_a_key_refuses_a_client_without_one(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen2.5-vl"]
    async with EngineClient([live.url], "tiny", timeout=30) as client:
        with pytest.raises(EngineRefused, match=r"401.*engine\.api_key_env"):
            await client.check()


def test_a_server_with_a_key_protects_every_route_but_two(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen2.5-vl"]
    with live.http() as http:
        routes = http.get("/openapi.json").json()["paths"]
    assert {"/pause", "/collective_rpc", "/update_weight_version", "/invocations", "/tokenize"} <= set(routes)
    with httpx.Client(base_url=live.url, trust_env=False) as http:
        answers = {path: http.request(next(iter(methods)), path).status_code for path, methods in routes.items()}
    assert {path for path, status in answers.items() if status != 401} == {"/health", "/metrics"}


async def test_a_trainer_with_the_key_reaches_the_routes_for_new_weights(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen2.5-vl"]
    async with HttpxTransport(live.api_key) as transport:
        await transport.post(f"{live.url}/pause?mode=wait&clear_cache=false", b"")
        assert (await fetch_engine_state(transport, live.url)).paused
        await transport.post(f"{live.url}/resume", b"")
        assert not (await fetch_engine_state(transport, live.url)).paused
