"""Our prompts and answers are those that the server itself makes of the same messages.

The reference is the server: its render route gives the prompt, and its chat completions give the tokens and log-probs.
Answers are limited to digits, which this tokenizer never merges. So the server gets the same tokens from the text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.records.messages import Message
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.trainer import check
from rollout.trainer.trajectory import Trajectory
from tests.needs.vllm.spelling import SpellingClient, say

COLORS = ("red", "green", "blue", "yellow", "red", "blue")
TASK = Task(id="000000", index=0, seed=7)
SYSTEM = "You describe pictures by numbers."


class Gallery(Environment):
    """Shows one picture in each turn, in six sizes; keeps a copy of the conversation before each answer."""

    def __init__(self) -> None:
        super().__init__(EnvironmentSettings())
        self.requests: list[list[Message]] = []

    async def run(self, task: Task, model: Model) -> Score:
        messages: list[Message] = [{"role": "system", "content": SYSTEM}]
        for turn, color in enumerate(COLORS):
            look = ColorCodewordSettings(image_size=32 + 24 * turn)
            picture = {"type": "image_url", "image_url": {"url": draw_square(color, look, seed=str(turn))}}
            messages.append({"role": "user", "content": [picture, {"type": "text", "text": f"Picture {turn}?"}]})
            reply = await model.chat(messages)
            self.requests.append([dict(message) for message in messages])
            messages.append(reply.message)
        return Score(1.0)


def digits(policy: PolicyClient) -> list[int]:
    tokenizer = policy.renderers.tokenizer
    return [tokenizer.token_id(digit) for digit in "0123456789"]


async def play_gallery(policy: PolicyClient) -> tuple[Gallery, Trajectory]:
    gallery = Gallery()
    trajectory = (await play(gallery, TASK, policy=policy)).trajectory
    assert trajectory.error is None
    assert len(gallery.requests) == len(COLORS)
    return gallery, trajectory


@pytest.mark.parametrize("mode", ["offload", "inline"])
@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
async def test_prompts_tokens_and_logprobs_are_the_servers_own(
    fleet: Mapping[str, Any], policy_for: Any, family: str, mode: str
) -> None:
    live = fleet[family]
    async with policy_for(live, mode) as policy:
        policy.sampling["allowed_token_ids"] = digits(policy)
        gallery, trajectory = await play_gallery(policy)
    assert check(trajectory) == []
    assert [step.prompt_source for step in trajectory.steps] == ["first", *["bridge"] * 5]
    with live.http() as server:
        for messages, (request, generation) in zip(gallery.requests, policy.engine.turns, strict=True):
            asked = {"model": "tiny", "messages": messages}
            rendered = server.post("/v1/chat/completions/render", json=asked).raise_for_status().json()
            assert rendered["token_ids"] == request.expanded_prompt.tolist()
            sampling = {key: policy.sampling[key] for key in ("temperature", "max_tokens", "allowed_token_ids")}
            wanted = {**asked, **sampling, "logprobs": True, "return_token_ids": True}
            (choice,) = server.post("/v1/chat/completions", json=wanted).raise_for_status().json()["choices"]
            assert choice["token_ids"] == generation.token_ids.tolist()
            theirs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            np.testing.assert_allclose(generation.logprobs, theirs, atol=1e-5, rtol=0)
    assert [len(request.images) for request, _ in policy.engine.turns] == [1, 2, 3, 4, 5, 6]


async def test_the_answers_depend_on_the_pictures(fleet: Mapping[str, Any], policy_for: Any) -> None:
    """Otherwise the comparison above would prove nothing about images."""
    logprobs = []
    for color in ("red", "blue"):
        async with policy_for(fleet["qwen3-vl"]) as policy:
            await play(OnePicture(color), TASK, policy=policy)
            logprobs.append(policy.engine.turns[0][1].logprobs.tolist())
    assert logprobs[0] != logprobs[1]


class OnePicture(Environment):
    """Shows one picture, and asks for one answer."""

    def __init__(self, color: str) -> None:
        super().__init__(EnvironmentSettings())
        self._color = color

    async def run(self, task: Task, model: Model) -> Score:
        url = draw_square(self._color, ColorCodewordSettings(), seed="look")
        await model.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
        return Score(1.0)


class Questions(Environment):
    """Asks three questions about a picture; the policy ends its first answer with another token than the template."""

    def __init__(self, policy: PolicyClient) -> None:
        super().__init__(EnvironmentSettings())
        self._policy = policy
        self.requests: list[list[Message]] = []

    async def run(self, task: Task, model: Model) -> Score:
        url = draw_square("red", ColorCodewordSettings(), seed="look")
        messages: list[Message] = [{"role": "system", "content": SYSTEM}]
        asked: list[Any] = [[{"type": "image_url", "image_url": {"url": url}}], "Sure?", "Really?"]
        for question, answer, end in zip(
            asked, ("red", "yes", "Yes."), ("<|endoftext|>", "<|im_end|>", "<|im_end|>"), strict=True
        ):
            say(self._policy, answer, end=end)
            messages.append({"role": "user", "content": question})
            reply = await model.chat(messages)
            self.requests.append([dict(message) for message in messages])
            messages.append(reply.message)
        return Score(1.0)


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
async def test_the_prompt_after_another_end_token_is_the_servers_own(
    fleet: Mapping[str, Any], policy_for: Any, family: str
) -> None:
    live = fleet[family]
    async with policy_for(live, client=SpellingClient) as policy:
        questions = Questions(policy)
        trajectory = (await play(questions, TASK, policy=policy)).trajectory
    assert check(trajectory) == []
    assert [step.prompt_source for step in trajectory.steps] == ["first", "end_token", "bridge"]
    assert policy.engine.turns[0][1].token_ids[-1] == policy.renderers.tokenizer.token_id("<|endoftext|>")
    with live.http() as server:
        for messages, (request, _) in zip(questions.requests, policy.engine.turns, strict=True):
            asked = {"model": "tiny", "messages": messages}
            rendered = server.post("/v1/chat/completions/render", json=asked).raise_for_status().json()
            assert rendered["token_ids"] == request.expanded_prompt.tolist()


async def test_usage_versions_and_cached_tokens_reach_the_record(fleet: Mapping[str, Any], policy_for: Any) -> None:
    async with policy_for(fleet["qwen3-vl"]) as policy:
        policy.sampling["allowed_token_ids"] = digits(policy)
        _, trajectory = await play_gallery(policy)
    for step in trajectory.steps:
        assert [(span.version, span.start) for span in step.versions] == [("default", 0)]
    assert trajectory.steps[-1].cached_tokens is not None
    assert trajectory.steps[-1].cached_tokens > 0
