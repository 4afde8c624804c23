"""The reward that a program sends itself with `POST …/reward`."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.api_keys import new_key
from rollout.environments.endpoint import PostedReward
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy
from tests.open_endpoints import TIMEOUT, OpenedEndpoint, error_problem, open_endpoint


@pytest.fixture
async def policy(tmp_path: Path) -> AsyncIterator[PolicyClient]:
    async with embedded_policy(tmp_path) as opened:
        yield opened


@pytest.fixture
async def opened(policy: PolicyClient) -> AsyncIterator[OpenedEndpoint]:
    async with open_endpoint(policy, accept_reward=True) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    ("body", "posted"),
    [
        (b"1", PostedReward(1.0, {}, {})),
        (b'{"reward": -0.5}', PostedReward(-0.5, {}, {})),
        (b'{"reward": 1, "metrics": {"files": 3}}', PostedReward(1.0, {}, {"files": 3.0})),
        (b'{"rewards": {"tests": 1, "style": 0.5}}', PostedReward(None, {"tests": 1.0, "style": 0.5}, {})),
    ],
)
async def test_the_reward_of_a_program_is_kept(opened: OpenedEndpoint, body: bytes, posted: PostedReward) -> None:
    assert opened.endpoint.posted_reward is None
    answer = await opened.client.post("/v1/reward", content=body)
    assert answer.status_code == 200
    assert answer.json() == {"accepted": True}
    assert opened.endpoint.posted_reward == posted


async def test_every_address_takes_a_reward(opened: OpenedEndpoint) -> None:
    endpoint = opened.endpoint
    with_header = [endpoint.base_url, endpoint.anthropic_base_url]
    with_key = [endpoint.keyed_base_url, endpoint.keyed_anthropic_base_url]
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        for reward, address in enumerate([*with_header, *with_key]):
            headers = {"x-api-key": endpoint.key} if address in with_header else {}
            answer = await client.post(f"{address}/reward", json=reward, headers=headers)
            assert answer.status_code == 200, address
            assert endpoint.posted_reward == PostedReward(float(reward), {}, {})


async def test_a_wrong_reward_does_not_replace_an_earlier_one(opened: OpenedEndpoint) -> None:
    await opened.client.post("/v1/reward", json=1.0)
    assert (await opened.client.post("/v1/reward", json="much")).status_code == 400
    assert opened.endpoint.posted_reward == PostedReward(1.0, {}, {})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not valid JSON"),
        (b"NaN", "not valid JSON"),
        (b"true", "not a finite number"),
        (b'{"reward": "1.0"}', "not a finite number"),
        (b'{"reward": null}', "not a finite number"),
        (b'{"reward": 1e31}', "must be from"),
        (b"[1.0]", "not a finite number"),
        (b"{}", "either reward or rewards"),
        (b'{"reward": 1, "rewards": {"a": 1}}', "either reward or rewards"),
        (b'{"metrics": {"a": 1}}', "either reward or rewards"),
        (b'{"rewards": {}}', "rewards is empty"),
        (b'{"rewards": [1]}', "rewards is not an object"),
        (b'{"rewards": {"": 1}}', "a name of 0 characters"),
        (b'{"rewards": {"a": false}}', 'rewards["a"] is false'),
        (b'{"reward": 1, "score": 2}', 'The key "score" is unknown'),
        (b'{"reward": 1, "metrics": {"%s": 1}}' % (b"x" * 201), "a name of 201 characters"),
        (b'{"rewards": {%s}}' % b",".join(b'"%d": 1' % at for at in range(101)), "rewards has 101 names"),
    ],
)
async def test_a_body_that_is_no_reward_is_refused_with_what_is_expected(
    opened: OpenedEndpoint, body: bytes, problem: str
) -> None:
    answer = await opened.client.post("/v1/reward", content=body)
    assert answer.status_code == 400
    assert error_problem("chat", answer.json()) is None
    message = answer.json()["error"]["message"]
    assert problem in message
    assert 'Send a number, {"reward": 1.0}' in message
    assert opened.endpoint.posted_reward is None


async def test_an_endpoint_that_takes_no_reward_says_which_argument_accepts_it(policy: PolicyClient) -> None:
    async with open_endpoint(policy) as opened:
        answer = await opened.client.post("/v1/reward", json=1.0)
    assert answer.status_code == 404
    assert "accept_reward=True" in answer.json()["error"]["message"]
    assert opened.endpoint.posted_reward is None


async def test_a_reward_after_the_end_is_refused_like_other_requests(policy: PolicyClient) -> None:
    async with open_endpoint(policy, accept_reward=True) as first:
        await first.client.post("/v1/reward", json=1.0)
    async with open_endpoint(policy) as second:
        headers = {"Authorization": f"Bearer {first.endpoint.key}"}
        answer = await second.client.post("/v1/reward", json=2.0, headers=headers)
    assert answer.status_code == 400
    assert "has ended" in answer.json()["error"]["message"]
    assert first.endpoint.posted_reward == PostedReward(1.0, {}, {})


@pytest.mark.parametrize("keys", [{}, {"x-api-key": new_key()}], ids=["no key", "an unknown key"])
async def test_a_reward_without_the_key_is_401(opened: OpenedEndpoint, keys: dict[str, Any]) -> None:
    async with httpx.AsyncClient(headers=keys, timeout=TIMEOUT) as client:
        answer = await client.post(f"{opened.endpoint.base_url}/reward", json=1.0)
    assert answer.status_code == 401
    assert opened.endpoint.posted_reward is None


async def test_a_name_with_the_key_is_kept_without_it(opened: OpenedEndpoint) -> None:
    await opened.client.post("/v1/reward", json={"rewards": {opened.endpoint.key: 1.0}})
    assert opened.endpoint.posted_reward == PostedReward(None, {"a-key-of-the-gateway": 1.0}, {})
