"""Whole rollouts with a real engine: what is sent at every turn, what is recorded, and what is refused."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pytest

from renderers_adapter.tokens import as_logical_ids
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.engine import protocol
from rollout.engine.aiohttp_transport import AiohttpTransport
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineUnreachable
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.environments.color_codeword import ColorCodeword, ColorCodewordSettings, ColorCodewordTasks, draw_square
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.kinds import RecordError
from rollout.records.stream import RolloutAlreadyFinished
from rollout.records.wire import encode_record
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy, play
from rollout.trainer import check, samples

Script = Callable[[Model], Awaitable[float]]
SMALL_PICTURES = ColorCodewordSettings(image_size=64)
COLORS = ("red", "green", "blue", "yellow", "red", "blue")
TASK = Task(id="000000", index=0, seed=7)


class FunctionEnvironment(Environment):
    """Plays the function that a test gives it."""

    def __init__(self, script: Script) -> None:
        super().__init__(EnvironmentSettings())
        self._script = script

    async def run(self, task: Task, model: Model) -> Score:
        return Score(await self._script(model))


class RecordingEngineClient(EngineClient):
    """Keeps every request, and changes it first if a test sets `tamper`."""

    def __init__(self, policy: PolicyClient) -> None:
        super().__init__([replica.url for replica in policy.engine.replicas], policy.engine.model, timeout=60)
        self.requests: list[GenerateRequest] = []
        self.tamper: Callable[[GenerateRequest], GenerateRequest] | None = None

    async def generate(self, request: GenerateRequest) -> Generation:
        if self.tamper is not None:
            request = self.tamper(request)
        self.requests.append(request)
        return await super().generate(request)


@pytest.fixture
async def policy(tmp_path: Path) -> AsyncIterator[PolicyClient]:
    async with embedded_policy(tmp_path / "images") as made:
        yield made


@pytest.fixture
async def recording(policy: PolicyClient) -> AsyncIterator[tuple[PolicyClient, RecordingEngineClient]]:
    async with RecordingEngineClient(policy) as engine:
        await engine.check()
        yield replace(policy, engine=engine), engine


def picture(color: str, seed: str = "") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": draw_square(color, SMALL_PICTURES, seed=color + seed)}}


def ask(text: str, *pictures: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


async def play_codeword(model: Model, turns: int) -> float:
    messages: list[dict[str, Any]] = []
    for color in COLORS[:turns]:
        messages.append(ask("Which colour?", picture(color)))
        messages.append((await model.chat(messages)).message)
    reply = await model.chat([*messages, ask("All of them, in order?")])
    return float(reply.text.split() == list(COLORS[:turns]))


def codeword_environment(turns: int) -> Environment:
    return FunctionEnvironment(lambda model: play_codeword(model, turns))


def image_hashes(request: GenerateRequest) -> list[str]:
    return [ref.hash for ref in request.images]


@pytest.mark.parametrize("mode", ["offload", "inline"])
async def test_a_rollout_is_correct_and_has_no_violations(tmp_path: Path, mode: Literal["offload", "inline"]) -> None:
    async with embedded_policy(tmp_path, mode=mode) as policy:
        (task,) = ColorCodeword(SMALL_PICTURES).tasks(ColorCodewordTasks(count=1, turns=4))
        trajectory = (await play(ColorCodeword(SMALL_PICTURES), task, policy=policy)).trajectory
    assert (trajectory.status, trajectory.reward) == (RolloutStatus.OK, 1.0)
    assert check(trajectory) == []
    assert len(os.listdir(tmp_path)) == (4 if mode == "offload" else 0)
    sources = {key for item in trajectory.images.values() for key in item if key.startswith("raw_")}
    assert sources == ({"raw_image_id"} if mode == "offload" else {"raw_uri"})


async def test_every_turn_sends_every_image_of_its_path(recording: tuple[PolicyClient, RecordingEngineClient]) -> None:
    policy, engine = recording
    trajectory = (await play(codeword_environment(5), TASK, policy=policy)).trajectory
    sent = [image_hashes(request) for request in engine.requests]
    assert [len(images) for images in sent] == [1, 2, 3, 4, 5, 5]
    for earlier, later in pairwise(sent):
        assert later[: len(earlier)] == earlier
    assert sent[-1] == [mark.hash for mark in samples(trajectory)[0].placeholders]


async def test_sampled_tokens_are_never_encoded_again(recording: tuple[PolicyClient, RecordingEngineClient]) -> None:
    policy, engine = recording
    trajectory = (await play(codeword_environment(3), TASK, policy=policy)).trajectory
    assert [step.prompt_source for step in trajectory.steps] == ["first", "bridge", "bridge", "bridge"]
    for earlier, step in zip(engine.requests[1:], trajectory.steps, strict=False):
        path = trajectory.path(step.leaf)
        seen = np.concatenate([node.run.ids for node in path])
        assert np.array_equal(earlier.prompt[: len(seen)], seen)


async def test_the_same_image_twice_is_two_references_and_one_descriptor(
    recording: tuple[PolicyClient, RecordingEngineClient],
) -> None:
    policy, engine = recording

    async def script(model: Model) -> float:
        messages = [ask("Two pictures", picture("red"), picture("red"))]
        messages.append((await model.chat(messages)).message)
        reply = await model.chat([*messages, ask("Once more", picture("red"))])
        return float(reply.text == "red")

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert [len(image_hashes(request)) for request in engine.requests] == [2, 3]
    assert len(set(image_hashes(engine.requests[-1]))) == len(trajectory.images) == 1
    assert trajectory.reward == 1.0
    assert check(trajectory) == []


async def test_compaction_forks_the_trace_and_sends_its_images_again(
    recording: tuple[PolicyClient, RecordingEngineClient],
) -> None:
    policy, engine = recording

    async def script(model: Model) -> float:
        first = ask("Which colour?", picture("red"))
        messages = [first, (await model.chat([first])).message, ask("And this?", picture("blue"))]
        messages.append((await model.chat(messages)).message)
        compacted = [ask("There was a red and a blue square."), {"role": "assistant", "content": "I see."}]
        reply = await model.chat([*compacted, ask("Which colours?", picture("blue"), picture("red"))])
        return float(reply.text.split() == ["blue", "red"])

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert trajectory.reward == 1.0
    assert [step.prompt_source for step in trajectory.steps] == ["first", "bridge", "root"]
    assert image_hashes(engine.requests[2]) == image_hashes(engine.requests[1])[::-1]
    assert check(trajectory) == []
    long, short = samples(trajectory)
    assert len(long.images) == len(short.images) == 2
    assert not trajectory.steps[2].images


async def test_answers_to_the_same_question_share_their_prompt_and_train_once_each(policy: PolicyClient) -> None:
    async def script(model: Model) -> float:
        first = ask("Which colour?", picture("green"))
        for _ in range(3):
            reply = await model.chat([first])
        await model.chat([first, reply.message, ask("All?")])
        return 1.0

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert check(trajectory) == []
    found = samples(trajectory)
    sampled = sum(int(node.sampled) * (len(node.run.ids) - node.run.sampled_from) for node in trajectory.nodes)
    assert len(found) == 3
    assert sum(int(sample.mask.sum()) for sample in found) == sampled
    assert len({node.index for node in trajectory.nodes if node.message["role"] == "user"}) == 2


async def test_a_turn_is_one_step_after_several_tries(policy: PolicyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two answers of every turn are lost on the way from the engine."""
    sound = (await play(codeword_environment(3), TASK, policy=policy)).trajectory
    sent = list[str]()

    class LosingTransport(AiohttpTransport):
        async def post(self, url: str, body: bytes, *, session_id: str | None = None) -> bytes:
            answer = await super().post(url, body, session_id=session_id)
            sent.append(orjson.loads(body)["request_id"].rpartition("-")[2])
            if sent[-1].endswith((".0", ".1")):
                raise EngineUnreachable("the answer was lost")
            return answer

    monkeypatch.setattr("rollout.engine.client._FIRST_RETRY_PAUSE_SECONDS", 0.001)
    (url,) = (replica.url for replica in policy.engine.replicas)
    async with EngineClient([url], policy.engine.model, timeout=60, transport=LosingTransport()) as engine:
        trajectory = (await play(codeword_environment(3), TASK, policy=replace(policy, engine=engine))).trajectory
    assert sent == [f"{turn}.{number}" for turn in range(4) for number in range(3)]
    assert check(trajectory) == []
    assert [sample.token_ids.tolist() for sample in samples(trajectory)] == [
        sample.token_ids.tolist() for sample in samples(sound)
    ]
    assert len(trajectory.steps) == 4


async def test_an_answer_that_was_edited_is_context_and_not_trained(policy: PolicyClient) -> None:
    async def script(model: Model) -> float:
        first = ask("Which colour?", picture("green"))
        await model.chat([first])
        await model.chat([first, {"role": "assistant", "content": "purple"}, ask("Sure?")])
        return 1.0

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert check(trajectory) == []
    edited = next(node for node in trajectory.nodes if node.message["content"] == "purple")
    assert not edited.sampled
    assert trajectory.steps[1].prompt_source == "compaction"


async def test_the_length_of_a_step_does_not_grow_with_the_number_of_turns(
    policy: PolicyClient, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = 32
    (task,) = ColorCodeword(SMALL_PICTURES).tasks(ColorCodewordTasks(count=1, turns=turns))
    trajectory = (await play(ColorCodeword(SMALL_PICTURES), task, policy=policy)).trajectory
    sizes = [sum(memoryview(frame).nbytes for frame in encode_record(step)) for step in trajectory.steps]
    ratio = np.mean(sizes[24:32]) / np.mean(sizes[2:10])
    with capsys.disabled():
        print(f"\nbytes of a step record, turns 24-31 over turns 2-9: {ratio:.3f} ({np.mean(sizes[2:32]):.0f} bytes)")
    assert trajectory.reward == 1.0
    assert ratio <= 1.10


def without_first_image(request: GenerateRequest) -> GenerateRequest:
    if len(request.images) < 2:
        return request
    first = int(np.flatnonzero(request.prompt == request.pad_id)[0])
    return replace(request, prompt=as_logical_ids(np.delete(request.prompt, first)), images=request.images[1:])


def with_two_images_swapped(request: GenerateRequest) -> GenerateRequest:
    if len(request.images) < 2:
        return request
    first, second, *rest = request.images
    return replace(request, images=(second, first, *rest))


@pytest.mark.parametrize("tamper", [without_first_image, with_two_images_swapped])
async def test_the_score_falls_when_prior_images_are_missing_or_swapped(
    recording: tuple[PolicyClient, RecordingEngineClient],
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[GenerateRequest], GenerateRequest],
) -> None:
    policy, engine = recording
    (task,) = ColorCodeword(SMALL_PICTURES).tasks(ColorCodewordTasks(count=1, turns=4, seed=5))
    assert task.data["codeword"][0] != task.data["codeword"][1]
    engine.tamper = tamper
    # Without these checks of the client, the fault would reach the score.
    monkeypatch.setattr(protocol, "check_request", lambda *_: None)
    monkeypatch.setattr(protocol, "_require_same_prompt", lambda *_: None)
    trajectory = (await play(ColorCodeword(SMALL_PICTURES), task, policy=policy)).trajectory
    assert trajectory.status is RolloutStatus.OK
    assert trajectory.reward is not None
    assert trajectory.reward < 1.0
    assert {violation.invariant for violation in check(trajectory)} == {2}


@pytest.mark.parametrize("tamper", [without_first_image, with_two_images_swapped])
async def test_a_prompt_that_the_engine_saw_differently_is_an_error(
    recording: tuple[PolicyClient, RecordingEngineClient],
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[GenerateRequest], GenerateRequest],
) -> None:
    policy, engine = recording
    engine.tamper = tamper
    monkeypatch.setattr(protocol, "check_request", lambda *_: None)

    async def script(model: Model) -> float:
        wide = {"type": "image_url", "image_url": {"url": draw_square("red", ColorCodewordSettings(), seed="wide")}}
        large = ColorCodewordSettings(image_size=512)
        huge = {"type": "image_url", "image_url": {"url": draw_square("blue", large, seed="huge")}}
        await model.chat([ask("Colours?", wide, huge)])
        return 1.0

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error is not None
    assert trajectory.error["type"] == "EngineMismatch"
    assert samples(trajectory) == []


async def test_a_rollout_whose_last_answer_was_cut_has_its_score(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, sampling={"max_tokens": 2}) as policy:
        trajectory = (await play(codeword_environment(3), TASK, policy=policy)).trajectory
    assert (trajectory.status, trajectory.limit) == (RolloutStatus.OK, RolloutLimit.TOKENS)
    assert trajectory.steps[-1].finish_reason == "length"
    assert check(trajectory) == []


async def refuses_image(model: Model) -> float:
    await model.chat([ask("Look", {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}})])
    return 1.0


async def ends_with_itself(model: Model) -> float:
    await model.chat([ask("Hi"), {"role": "assistant", "content": "Hello"}])
    return 1.0


async def not_a_number(model: Model) -> float:
    await model.chat([ask("Hi")])
    return float("nan")


async def leaves(model: Model) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refuses_image, "ImageError"),
        (ends_with_itself, "MessageError"),
        (not_a_number, "ScoreError"),
        (leaves, "SystemExit"),
    ],
)
async def test_a_rollout_with_a_mistake_fails_with_its_error(policy: PolicyClient, script: Script, kind: str) -> None:
    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error is not None
    assert trajectory.error["type"] == kind


async def test_with_a_high_temperature_logprobs_are_below_zero(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, sampling={"temperature": 3.0, "seed": 1}) as policy:
        trajectory = (await play(codeword_environment(6), TASK, policy=policy)).trajectory
    sample = samples(trajectory)[0]
    sampled = sample.logprobs[sample.mask]
    assert (sampled < -0.01).any()
    assert (sampled <= 0).all()
    assert set(sample.versions) == {"0"}
    assert (sample.version_index[sample.mask] == 0).all()
    assert (sample.version_index[~sample.mask] == -1).all()


async def test_a_turn_that_the_environment_cancels_leaves_no_gap(policy: PolicyClient) -> None:
    async def script(model: Model) -> float:
        first = ask("Which colour?", picture("green"))
        for patience in (0.0, 0.005, 0.01, 0.02, 0.04):
            with suppress(TimeoutError):
                await asyncio.wait_for(model.chat([first]), patience)
        await model.chat([first])
        return 1.0

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert trajectory.status is RolloutStatus.OK
    assert check(trajectory) == []


async def test_a_turn_that_cannot_be_recorded_is_the_last_and_leaves_no_gap(
    policy: PolicyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(model: Model) -> float:
        messages = [ask("Hi")]
        messages.append((await model.chat(messages)).message)
        messages.append(ask("Too long to be sent. " * 100))
        monkeypatch.setattr("transports.codec.frames.MAX_HEAD_BYTES", 1500)
        with pytest.raises(RecordError, match="at most 1500"):
            await model.chat(messages)
        monkeypatch.undo()
        with pytest.raises(RolloutAlreadyFinished, match=r"cannot continue.*at most 1500"):
            await model.chat(messages)
        return 1.0

    trajectory = (await play(FunctionEnvironment(script), TASK, policy=policy)).trajectory
    assert (trajectory.status, len(trajectory.steps)) == (RolloutStatus.OK, 1)
    assert check(trajectory) == []


async def test_numbers_of_numpy_are_rewards_and_metrics(policy: PolicyClient) -> None:
    class Numeric(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            await model.chat([ask("Hi")])
            return Score(np.float32(0.5), {"half": np.float64(0.5)})  # type: ignore[arg-type]

    trajectory = (await play(Numeric(EnvironmentSettings()), TASK, policy=policy)).trajectory
    assert (trajectory.reward, trajectory.metrics) == (0.5, {"half": 0.5})
