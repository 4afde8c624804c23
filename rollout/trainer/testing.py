"""Makes the records of invented rollouts, to test and measure a trainer without an engine or an environment.

for packet in await scripted_rollout("000000.0", turns=3, group_size=4):
    await queue.put(packet.frames, key=packet.key, tag=packet.tag)
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from renderers_adapter.tokens import ExpandedIds, ImageSlot, LogicalIds, TokenRun, expand
from rollout.records.announcing import put_in_every_partition
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.evidence import VersionSpan, answer_digest, prompt_digest
from rollout.records.kinds import MessageTokens, PromptSource, Step
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.records.messages import FinishReason
from rollout.records.stream import AttemptId, RolloutStream
from rollout.records.task import Task
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.trajectory import Trajectory
from transports import Frames, Queue

PAD_ID = 99_999
_GENERATION_PROMPT = LogicalIds(np.array([7], np.int32))
_STAGE_SECONDS = {"prepare": 0.002, "render": 0.001, "engine": 0.75, "parse": 0.0005}


class Packet(NamedTuple):
    """One record, as the arguments of `Queue.put`."""

    frames: Frames
    """The bytes of the record."""
    key: str
    """The key; it determines the partition."""
    tag: str
    """The name of the record in logs and dead letters."""


@dataclass(slots=True)
class _RecordingQueue:
    """Keeps the records that a stream sends, so that a test can deliver them in any order."""

    packets: list[Packet]

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        self.packets.append(Packet(frames, key, tag))


async def scripted_rollout(
    rollout: str = "000000.0",
    *,
    run: str = "run",
    environment: str = "Scripted",
    attempt: int = 1,
    group_size: int = 1,
    turns: int = 3,
    question_tokens: int = 3,
    answer_tokens: int = 2,
    image_tokens: int = 0,
    assets: str = "",
    version: str = "7",
    limit: RolloutLimit = RolloutLimit.NONE,
    turn_rewards: Mapping[int, float] | None = None,
) -> list[Packet]:
    """Return all records of one attempt at a rollout. The id of its group is the rollout's id up to the last dot.

    Each turn has a question of `question_tokens` tokens and an answer of `answer_tokens` tokens. If `image_tokens` is
    not 0, one token of each question is a new image that expands to `image_tokens` tokens. The reward is the number of
    the attempt, so that a test can see which attempt a trajectory comes from.
    """
    recording_queue: Any = _RecordingQueue([])
    group = rollout.rpartition(".")[0]
    stream = RolloutStream(recording_queue, AttemptId(run, environment, group, rollout, 0, group_size, attempt))
    layout = {"family": "qwen_vl", "fingerprint": "0" * 32} if image_tokens else {}
    await stream.put_started(
        Task(group, 0, 1),
        policy_version=version,
        config_digest="scripted",
        model="scripted",
        pad_id=PAD_ID,
        assets=assets,
        layout=layout,
    )
    path: list[TokenRun] = []
    for turn in range(turns):
        question, answer = _question(turn, question_tokens, image_tokens), _answer(turn, answer_tokens)
        prompt = expand([*path, question, TokenRun(_GENERATION_PROMPT, len(_GENERATION_PROMPT))], pad_id=PAD_ID)
        hashes = [placeholder.hash for placeholder in prompt.placeholders]
        nodes = (
            MessageTokens(_question_message(turn, question), question, ((0, len(question.ids)),)),
            MessageTokens(_answer_message(turn), answer, ()),
        )
        await stream.put_step(
            Step(
                header=stream.next_header(),
                turn=turn,
                parent=2 * turn - 1,
                first=2 * turn,
                nodes=nodes,
                images={slot.hash: _descriptor(slot) for slot in question.images},
                prompt_source=PromptSource.BRIDGE if turn else PromptSource.FIRST,
                prompt_length=len(prompt.ids),
                prompt_digest=prompt_digest(ExpandedIds(prompt.ids), hashes),
                finish_reason=FinishReason.STOP,
                answer_digest=answer_digest(LogicalIds(answer.ids[answer.sampled_from :]), answer.logprobs),
                versions=(VersionSpan(version, 0, answer_tokens),),
                policy=(version, version),
                timings=_STAGE_SECONDS,
            )
        )
        path += [question, answer]
    await stream.put_finished(RolloutStatus.OK, reward=float(attempt), limit=limit, turn_rewards=turn_rewards)
    return list(recording_queue.packets)


async def put_all(queue: Queue, packets: list[Packet]) -> None:
    """Put all packets into a queue, in the given order."""
    for packet in packets:
        await queue.put(packet.frames, key=packet.key, tag=packet.tag)


async def put_status(
    queue: Queue, phase: LaunchPhase, *, run: str = "run", environment: str = "Scripted", launch: int = 1
) -> None:
    """Say in every partition, as a launch on this machine does, that it runs or that it has ended."""
    status = LaunchStatus(run, environment, launch, phase, f"/data/{run}", socket.gethostname(), os.getpid())
    await put_in_every_partition(queue, status)


async def read_all(reader: TrajectoryReader, timeout: float = 0.02) -> list[Trajectory]:
    """Return the trajectories that arrive until no trajectory and no record arrives for `timeout` seconds."""
    trajectories: list[Trajectory] = []
    while True:
        records_before = reader.stats().records
        if (trajectory := await reader.receive(timeout=timeout)) is not None:
            trajectories.append(trajectory)
        elif reader.stats().records == records_before:
            return trajectories


async def checkpoint(reader: TrajectoryReader) -> dict[str, Any]:
    """Get the reader's state and commit it, as a trainer does when it saves; return the state."""
    state = reader.state_dict()
    await reader.commit()
    return state


def _question(turn: int, tokens: int, image_tokens: int) -> TokenRun:
    ids = np.arange(100 + turn, 100 + turn + tokens, dtype=np.int32)
    if not image_tokens:
        return TokenRun(LogicalIds(ids), len(ids))
    ids[0] = PAD_ID
    return TokenRun(LogicalIds(ids), len(ids), images=(ImageSlot(f"{turn:032x}", 0, image_tokens),))


def _answer(turn: int, tokens: int) -> TokenRun:
    answer_ids = np.arange(20 + turn, 20 + turn + tokens, dtype=np.int32)
    ids = LogicalIds(np.concatenate([_GENERATION_PROMPT, answer_ids]))
    return TokenRun(ids, len(_GENERATION_PROMPT), np.full(tokens, -0.25, np.float32))


def _question_message(turn: int, question: TokenRun) -> dict[str, Any]:
    text = f"question {turn}"
    if not question.images:
        return {"role": "user", "content": text}
    parts = [{"type": "image", "hash": slot.hash} for slot in question.images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _answer_message(turn: int) -> dict[str, Any]:
    return {"role": "assistant", "content": f"answer {turn}"}


def _descriptor(slot: ImageSlot) -> dict[str, Any]:
    grid = [1, 2, 2 * slot.length]
    return {"payload": {"image_grid_thw": [grid]}, "raw_image_id": f"{slot.hash}{'0' * 32}.png"}
