"""New weights for a running vLLM, with requests in flight whose pictures it has cached.

The tokens of a version show which weights sampled them. Version 1 never ends an answer, and version 2 ends it at once,
so nothing depends on the speed of the machine.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from renderers_adapter.tokenizer import load_tokenizer
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.records.versions import OnUpdate
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.trainer import AsyncPolicyPublisher, PublisherSettings, check, samples
from rollout.trainer.trajectory import Trajectory
from tests.marking import make_two_token_saver, versions_of_tokens

TASK = Task(id="000000", index=0, seed=7)
ENDLESS = 30_000
Publishing = Callable[[OnUpdate], Any]


class Turns(Environment):
    """Plays `turns` turns with the same picture, and calls `before` before each."""

    def __init__(self, turns: int, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        super().__init__(EnvironmentSettings())
        self._turns, self._before = turns, before

    async def run(self, task: Task, model: Model) -> Score:
        url = draw_square("red", ColorCodewordSettings(image_size=96), seed="the same in every test")
        messages: list[Any] = []
        for turn in range(self._turns):
            if self._before is not None:
                await self._before(turn)
            messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
            messages.append((await model.chat(messages)).message)
        return Score(1.0)


class RequestsOfAProgram(Environment):
    """Sends requests of a program over the gateway: one streamed and one not, at the same time, and then another."""

    def __init__(self) -> None:
        super().__init__(EnvironmentSettings())
        self.answers: list[tuple[int, str]] = []

    async def run(self, task: Task, model: Model) -> Score:
        url = draw_square("red", ColorCodewordSettings(image_size=96), seed="the same in every test")
        picture = {"type": "image_url", "image_url": {"url": url}}
        async with model.endpoint() as endpoint:
            headers = {"authorization": f"Bearer {endpoint.key}"}
            async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http:

                async def ask(**keys: Any) -> None:
                    body = {"model": "policy", "messages": [{"role": "user", "content": [picture]}], **keys}
                    answer = await http.post(f"{endpoint.base_url}/chat/completions", json=body)
                    self.answers.append((answer.status_code, answer.text))

                async with asyncio.TaskGroup() as group:
                    group.create_task(ask())
                    group.create_task(ask(stream=True))
                await ask(user="later")
        return Score(1.0)


@pytest.fixture
async def live(fleet: Mapping[str, Any], tmp_path: Path) -> AsyncIterator[Any]:
    """A server; after the test, it gets its own weights and version name back."""
    server = fleet["qwen3-vl"]
    yield server
    with server.http() as http:
        for path, body in (
            ("/pause?mode=abort", {}),
            ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(server.model_dir)}}),
            ("/reset_prefix_cache", {}),
            ("/reset_encoder_cache", {}),
            ("/update_weight_version", {"new_version": "default"}),
            ("/resume", {}),
        ):
            http.post(path, json=body).raise_for_status()


@pytest.fixture
def publishing(live: Any, tmp_path: Path) -> Publishing:
    """A publisher that has published version 1."""

    @asynccontextmanager
    async def make(mode: OnUpdate) -> AsyncIterator[AsyncPolicyPublisher]:
        settings = PublisherSettings((live.url,), tmp_path / "policy", on_update=mode, reference=live.model_dir)
        async with AsyncPolicyPublisher(settings) as publisher:
            await publisher.publish(1, make_letter_saver(live, "ab"))
            yield publisher

    return make


def make_letter_saver(live: Any, letters: str) -> Callable[[Path], None]:
    tokenizer = load_tokenizer(live.model_dir)
    return make_two_token_saver(live.model_dir, [tokenizer.token_id(letter) for letter in letters])


def make_end_saver(live: Any) -> Callable[[Path], None]:
    tokenizer = load_tokenizer(live.model_dir)
    return make_two_token_saver(live.model_dir, [tokenizer.token_id(name) for name in ("<|im_end|>", "<|endoftext|>")])


def spans(trajectory: Trajectory, step: int = 0) -> list[tuple[str, int, int]]:
    return [(span.version, span.start, span.end) for span in trajectory.steps[step].versions]


def sampled_tokens(trajectory: Trajectory, step: int = 0) -> list[int]:
    run = trajectory.nodes[trajectory.steps[step].leaf].run
    found: list[int] = run.ids[run.sampled_from :].tolist()
    return found


async def wait_until_answering(live: Any) -> None:
    """Wait until the server is in the middle of an answer."""
    tokens = "generation_tokens_total"
    before = await anyio.to_thread.run_sync(live.metric, tokens)
    with anyio.fail_after(60):
        while await anyio.to_thread.run_sync(live.metric, tokens) <= before + 2:
            pass


async def update_in_the_middle(
    live: Any, policy: PolicyClient, publisher: AsyncPolicyPublisher, environment: Environment | None = None
) -> Trajectory:
    """Play an environment, by default one answer, and publish version 2 during its first answers."""
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        playing = group.create_task(play(environment or Turns(1), TASK, policy=policy))
        await wait_until_answering(live)
        await publisher.publish(2, make_end_saver(live))
    return playing.result().trajectory


async def test_keep_continues_with_the_new_weights_and_labels_every_token_with_its_version(
    live: Any, policy_for: Any, publishing: Publishing
) -> None:
    async with publishing("keep") as publisher, policy_for(live, max_tokens=ENDLESS) as policy:
        trajectory = await update_in_the_middle(live, policy, publisher)
        later = (await play(Turns(2), TASK, policy=policy)).trajectory
    tokens = sampled_tokens(trajectory)
    assert spans(trajectory) == [("1", 0, len(tokens) - 1), ("2", len(tokens) - 1, len(tokens))]
    tokenizer = policy.renderers.tokenizer
    assert set(tokens[:-1]) <= {tokenizer.token_id("a"), tokenizer.token_id("b")}
    assert tokens[-1] in policy.renderers.stop_token_ids
    (sample,) = samples(trajectory)
    assert [sample.versions[at] for at in sample.version_index[sample.mask]] == ["1"] * (len(tokens) - 1) + ["2"]
    assert [spans(later, step) for step in (0, 1)] == [[("2", 0, 1)]] * 2
    assert check(trajectory) == check(later) == []


async def test_wait_lets_an_answer_finish_and_later_turns_use_the_new_weights(
    live: Any, policy_for: Any, publishing: Publishing
) -> None:
    async with publishing("wait") as publisher, policy_for(live, max_tokens=300) as policy:
        trajectory = await update_in_the_middle(live, policy, publisher)
        later = (await play(Turns(2), TASK, policy=policy)).trajectory
    assert spans(trajectory) == [("1", 0, 300)]
    assert [spans(later, step) for step in (0, 1)] == [[("2", 0, 1)]] * 2


async def test_abort_starts_the_turn_again_and_keeps_no_token_of_the_old_weights(
    live: Any, policy_for: Any, publishing: Publishing
) -> None:
    async with publishing("abort") as publisher, policy_for(live, max_tokens=ENDLESS) as policy:
        trajectory = await update_in_the_middle(live, policy, publisher)
    assert spans(trajectory) == [("2", 0, 1)]
    assert sampled_tokens(trajectory)[0] in policy.renderers.stop_token_ids
    assert trajectory.error is None


@pytest.mark.parametrize(
    ("mode", "max_tokens", "first_version"), [("wait", 300, "1"), ("abort", ENDLESS, "2")], ids=["wait", "abort"]
)
async def test_a_program_sees_no_error_when_new_weights_come_during_its_requests(
    live: Any, policy_for: Any, publishing: Publishing, mode: OnUpdate, max_tokens: int, first_version: str
) -> None:
    program = RequestsOfAProgram()
    async with publishing(mode) as publisher, policy_for(live, max_tokens=max_tokens) as policy:
        trajectory = await update_in_the_middle(live, policy, publisher, program)
    assert [status for status, _ in program.answers] == [200] * 3
    assert not any('"error"' in text for _, text in program.answers)
    versions = [[span.version for span in step.versions] for step in trajectory.steps]
    assert [first_version] in versions[:2]  # the other one may have come during the pause
    assert all(version in (["1"], ["2"]) for version in versions)
    assert versions[2] == ["2"]
    assert not trajectory.unreceived_turns
    assert check(trajectory) == []


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
async def test_updates_between_and_within_turns_break_no_server_with_cached_pictures(
    live: Any, policy_for: Any, publishing: Publishing, mode: OnUpdate
) -> None:
    """Eight conversations with the same picture run at any time, and nine updates come during them.

    No request meets more than two of them, because a client repeats an aborted request a limited number of times.
    """
    letters = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st")
    played: list[Trajectory] = []
    waiting, went_on = set[int](), anyio.Event()
    updating = True
    async with publishing(mode) as publisher, policy_for(live, max_tokens=40) as policy:

        async def keep_playing(index: int) -> None:
            while updating:
                played.append((await play(Turns(2), TASK, policy=policy)).trajectory)
                waiting.discard(index)
                if not waiting:
                    went_on.set()

        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            for index in range(8):
                group.create_task(keep_playing(index))
            for version in range(2, len(letters) + 1):
                await wait_until_answering(live)
                await publisher.publish(version, make_letter_saver(live, letters[version - 1]))
                waiting, went_on = set(range(8)), anyio.Event()
                await went_on.wait()
            updating = False
        tokenizer = policy.renderers.tokenizer
    assert len(played) >= 8
    for trajectory in played:
        assert trajectory.error is None
        assert check(trajectory) == []
        for step, record in enumerate(trajectory.steps):
            tokens = sampled_tokens(trajectory, step)
            assert record.versions[-1].end == len(tokens) == 40
            for span in record.versions:
                assert {v + 1 for v in versions_of_tokens(tokens[span.start : span.end], tokenizer)} == {
                    int(span.version)
                }
            if mode != "keep":
                assert len(record.versions) == 1


async def test_logprobs_after_an_update_are_those_of_a_server_that_never_had_other_weights(
    live: Any, policy_for: Any, publishing: Publishing
) -> None:
    """Nothing of the old weights remains: no encoded pictures and no prefixes."""
    logprobs = []
    async with policy_for(live, max_tokens=8) as policy:
        policy.sampling["allowed_token_ids"] = [policy.renderers.tokenizer.token_id(digit) for digit in "0123456789"]
        for _ in range(2):
            await play(Turns(3), TASK, policy=policy)
            logprobs.append(np.concatenate([generation.logprobs for _, generation in policy.engine.turns[-3:]]))
            async with publishing("wait") as publisher:
                await play(Turns(3), TASK, policy=policy)  # fills the caches with values of version 1
                await publisher.publish(2, lambda directory: copy_weights(live.model_dir, directory))
    np.testing.assert_allclose(logprobs[1], logprobs[0], atol=1e-5, rtol=0)


def copy_weights(source: Path, directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
