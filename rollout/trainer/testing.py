"""Rollouts without engine or environment: the records that a worker would put, for tests and benchmarks of a trainer.

for packet in await scripted_rollout("000000.0", turns=3, group_size=4):
    await queue.put(packet.frames, key=packet.key, tag=packet.tag)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from renderers_adapter.tokens import ExpandedIds, ImageSlot, LogicalIds, TokenRun, expand
from rollout.records.evidence import VersionSpan, answer_digest, prompt_digest
from rollout.records.stream import RolloutId, RolloutStream
from rollout.records.task import Task
from rollout.records.wire import NodeRecord, RolloutStatus, Step
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.trajectory import Trajectory
from transports import Frames, Queue

PAD_ID = 99_999
_OPENING = LogicalIds(np.array([7], np.int32))
_TIMINGS = {"prepare": 0.002, "render": 0.001, "engine": 0.75, "parse": 0.0005}


class Packet(NamedTuple):
    """One record, as it is put."""

    frames: Frames
    key: str
    tag: str


@dataclass(slots=True)
class _Outbox:
    """Takes what a stream puts, so that a test can deliver it as it likes."""

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
    asked: int = 3,
    answered: int = 2,
    image_tokens: int = 0,
    assets: str = "",
    version: str = "7",
) -> list[Packet]:
    """All records of one attempt at `rollout`, whose group is its name up to the last dot.

    Each turn asks with so many tokens, one of them for a new image that becomes `image_tokens` (0: no images), and is
    answered with so many. The reward is the attempt's number, so that a trajectory tells which attempt it was.
    """
    outbox: Any = _Outbox([])
    group = rollout.rpartition(".")[0]
    stream = RolloutStream(outbox, RolloutId(run, environment, group, rollout, 0, group_size, attempt))
    layout = {"family": "qwen_vl", "fingerprint": "0" * 32} if image_tokens else {}
    await stream.started(
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
        question, answer = _question(turn, asked, image_tokens), _answer(turn, answered)
        prompt = expand([*path, question, TokenRun(_OPENING, len(_OPENING))], pad_id=PAD_ID)
        hashes = [mark.hash for mark in prompt.placeholders]
        nodes = (
            NodeRecord(_message(turn, question), question, ((0, len(question.ids)),)),
            NodeRecord(_said(turn), answer),
        )
        await stream.step(
            Step(
                header=stream.next_header(),
                turn=turn,
                parent=2 * turn - 1,
                first=2 * turn,
                nodes=nodes,
                images={slot.hash: _descriptor(slot) for slot in question.images},
                prompt_source="bridge" if turn else "first",
                prompt_length=len(prompt.ids),
                prompt_digest=prompt_digest(ExpandedIds(prompt.ids), hashes),
                finish_reason="stop",
                answer_digest=answer_digest(LogicalIds(answer.ids[answer.sampled_from :]), answer.logprobs),
                versions=(VersionSpan(version, 0, answered),),
                policy=(version, version),
                timings=_TIMINGS,
            )
        )
        path += [question, answer]
    await stream.finished(RolloutStatus.OK, reward=float(attempt))
    return list(outbox.packets)


async def put_all(queue: Queue, packets: list[Packet]) -> None:
    for packet in packets:
        await queue.put(packet.frames, key=packet.key, tag=packet.tag)


async def read_all(reader: TrajectoryReader, timeout: float = 0.02) -> list[Trajectory]:
    """Everything that comes until nothing comes for that long."""
    found = []
    while (trajectory := await reader.receive(timeout=timeout)) is not None:
        found.append(trajectory)
    return found


async def checkpoint(reader: TrajectoryReader) -> dict[str, Any]:
    """What a trainer does when it saves: the state, stored, then committed."""
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
    said = np.arange(20 + turn, 20 + turn + tokens, dtype=np.int32)
    ids = LogicalIds(np.concatenate([_OPENING, said]))
    return TokenRun(ids, len(_OPENING), np.full(tokens, -0.25, np.float32))


def _message(turn: int, question: TokenRun) -> dict[str, Any]:
    text = f"question {turn}"
    if not question.images:
        return {"role": "user", "content": text}
    parts = [{"type": "image", "hash": slot.hash} for slot in question.images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _said(turn: int) -> dict[str, Any]:
    return {"role": "assistant", "content": f"answer {turn}"}


def _descriptor(slot: ImageSlot) -> dict[str, Any]:
    grid = [1, 2, 2 * slot.length]
    return {"payload": {"image_grid_thw": [grid]}, "raw_image_id": f"{slot.hash}{'0' * 32}.png"}
