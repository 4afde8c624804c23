"""The trainer's reader: whole trajectories out of disordered, repeated, damaged and missing records, each once."""

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from renderers_adapter.tokens import ExpandedIds, TokenRun, logical
from rollout.environments.base import Task
from rollout.evidence import VersionSpan, prompt_digest
from rollout.steps import (
    Header,
    NodeRecord,
    RecordError,
    RolloutFinished,
    RolloutStarted,
    RolloutStatus,
    Step,
    decode_record,
    encode_record,
)
from rollout.stream import RolloutId, RolloutStream
from rollout.trainer import GroupAssembler, ReaderStateError, Trajectory, TrajectoryReader, check, samples
from transports import Frames, Queue, open_queue
from transports.codec import decode, encode

Packet = tuple[Frames, str, str]
QUEUE = "memory://reader-test"


class Outbox:
    """Takes what a stream puts, so that a test can deliver it as it likes."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        self.packets.append((frames, key, tag))


def step_of(header: Header, turn: int, parent: int, first: int) -> Step:
    asked = TokenRun(logical([1, 2, 3 + turn]), 3)
    said = TokenRun(logical([9, 20 + turn, 2]), 1, np.full(2, -0.25, np.float32))
    return Step(
        header=header,
        turn=turn,
        parent=parent,
        first=first,
        nodes=(
            NodeRecord({"role": "user", "content": f"question {turn}"}, asked),
            NodeRecord({"role": "assistant", "content": f"answer {turn}"}, said),
        ),
        images={},
        prompt_source="bridge",
        prompt_length=0,
        prompt_digest=b"",
        finish_reason="stop",
        versions=(VersionSpan("7", 0, 2),),
    )


async def record(
    rollout: str = "000000.0", *, group: str = "000000", attempt: int = 1, turns: int = 3, size: int = 1
) -> list[Packet]:
    """All records of one attempt, as a worker would put them."""
    outbox: Any = Outbox()
    stream = RolloutStream(outbox, RolloutId("run", "Env", group, rollout, 0, size, attempt))
    await stream.started(
        Task(group, 0, 1), policy_version="7", config_digest="c", model="m", pad_id=99, assets="", layout={}
    )
    path: list[int] = []
    for turn in range(turns):
        step = step_of(stream.next_header(), turn, 2 * turn - 1, 2 * turn)
        path += [1, 2, 3 + turn, 9]
        digest = prompt_digest(ExpandedIds(logical(path)), [])
        await stream.step(replace(step, prompt_length=len(path), prompt_digest=digest))
        path += [20 + turn, 2]
    await stream.finished(RolloutStatus.OK, reward=float(attempt))
    return list(outbox.packets)


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with open_queue(QUEUE) as opened:
        yield opened


async def deliver(queue: Queue, packets: Sequence[Packet]) -> None:
    for frames, key, tag in packets:
        await queue.put(frames, key=key, tag=tag)


async def read_all(reader: TrajectoryReader) -> list[Trajectory]:
    found = []
    while (trajectory := await reader.receive(timeout=0.05)) is not None:
        found.append(trajectory)
    return found


async def test_a_trajectory_comes_whole_and_sound(queue: Queue) -> None:
    await deliver(queue, await record())
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        (trajectory,) = await read_all(reader)
    assert check(trajectory) == []
    assert [node.message["content"] for node in trajectory.path(5)] == [
        text for turn in range(3) for text in (f"question {turn}", f"answer {turn}")
    ]
    (sample,) = samples(trajectory)
    assert sample.mask.sum() == 6
    assert sample.versions == ("7",)


@pytest.mark.parametrize("seed", range(10))
async def test_order_does_not_matter(queue: Queue, seed: int) -> None:
    packets = await record("a.0", group="a") + await record("b.0", group="b")
    random.Random(seed).shuffle(packets)
    await deliver(queue, packets)
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        found = await read_all(reader)
    assert sorted(trajectory.rollout for trajectory in found) == ["a.0", "b.0"]
    assert all(check(trajectory) == [] and trajectory.status is RolloutStatus.OK for trajectory in found)


@pytest.mark.parametrize("winner", [1, 2])
async def test_the_first_finished_attempt_wins_and_the_other_is_dropped(queue: Queue, winner: int) -> None:
    attempts = {number: await record(attempt=number) for number in (1, 2)}
    loser = attempts[3 - winner]
    await deliver(queue, [*loser[:3], *attempts[winner], *loser[3:]])
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        (trajectory,) = await read_all(reader)
        reader.state_dict()
        await reader.commit()
        assert (await queue.stats()).backlog_records == 0
    assert trajectory.attempt == winner


async def test_nothing_is_acked_before_commit_and_commit_acks_what_the_state_contains(queue: Queue) -> None:
    await deliver(queue, await record("a.0", group="a"))
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        await read_all(reader)
        await reader.commit()
        assert (await queue.stats()).backlog_records == 5
        reader.state_dict()
        await deliver(queue, await record("b.0", group="b"))
        await read_all(reader)
        await reader.commit()
        assert (await queue.stats()).backlog_records == 5
        reader.state_dict()
        await reader.commit()
        assert (await queue.stats()).backlog_records == 0


@pytest.mark.parametrize("saved", [False, True])
async def test_after_a_crash_a_trajectory_is_read_again_unless_the_checkpoint_has_it(queue: Queue, saved: bool) -> None:
    await deliver(queue, await record("a.0", group="a") + await record("b.0", group="b"))
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        before = reader.state_dict()
        await read_all(reader)
        after = reader.state_dict()
    # It died before it could commit: the queue has everything still, and the checkpoint decides.
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        reader.load_state_dict(after if saved else before)
        found = await read_all(reader)
        reader.state_dict()
        await reader.commit()
        assert (await queue.stats()).backlog_records == 0
    assert len(found) == (0 if saved else 2)


async def test_a_state_in_the_middle_keeps_what_was_not_handed_out(queue: Queue) -> None:
    packets = [await record(f"{name}.0", group=name) for name in "abc"]
    mixed = [packet for together in zip(*packets, strict=True) for packet in together]
    await deliver(queue, mixed)
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        first = await reader.receive(timeout=1)
        state = reader.state_dict()
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        reader.load_state_dict(state)
        rest = await read_all(reader)
    assert first is not None
    assert sorted([first.rollout, *(trajectory.rollout for trajectory in rest)]) == ["a.0", "b.0", "c.0"]


async def test_a_late_attempt_is_dropped_after_a_restart(queue: Queue) -> None:
    await deliver(queue, await record(attempt=2))
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        await read_all(reader)
        state = reader.state_dict()
        await reader.commit()
    await deliver(queue, await record(attempt=1))
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        reader.load_state_dict(state)
        assert await read_all(reader) == []
        assert reader.stats().dropped == 5


async def test_a_step_that_never_comes_makes_the_rollout_fail_after_a_while(queue: Queue) -> None:
    packets = await record()
    del packets[2]
    await deliver(queue, packets)
    async with TrajectoryReader(open_queue(QUEUE), gap_timeout=0.1) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error is not None
    assert trajectory.error["message"].startswith("2 of 3 steps")


async def test_a_record_that_cannot_be_decoded_fails_its_rollout_and_the_group_completes(queue: Queue) -> None:
    bad = await record("g.0", group="g", size=2)
    bad[2] = ((b"\xc1 not a record",), bad[2][1], bad[2][2])
    await deliver(queue, bad + await record("g.1", group="g", size=2))
    groups = GroupAssembler()
    async with TrajectoryReader(open_queue(QUEUE)) as reader:
        found = await read_all(reader)
        whole = [group for trajectory in found if (group := groups.add(trajectory))]
        assert (await queue.stats()).dead_letters == 1
    assert [trajectory.status.value for trajectory in whole[0].trajectories] == ["failed", "ok"]
    assert groups.waiting == 0


async def test_steps_that_were_changed_on_the_way_fail_their_rollout(queue: Queue) -> None:
    packets, other = await record(), await record(turns=4)
    packets[2] = (other[3][0], packets[2][1], packets[2][2])
    await deliver(queue, packets)
    async with TrajectoryReader(open_queue(QUEUE), gap_timeout=0.1) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED


async def test_a_state_of_another_kind_is_refused(queue: Queue) -> None:
    async with TrajectoryReader(queue) as reader:
        with pytest.raises(ReaderStateError):
            reader.load_state_dict({"version": 99})


async def test_a_newer_major_version_is_refused_and_unknown_fields_are_kept() -> None:
    ((frames, _, _), *_) = await record()
    wire = decode(frames)
    kept = decode_record(encode({**wire, "schema": 101, "novelty": 3}))
    assert isinstance(kept, RolloutStarted)
    assert kept.extra == {"novelty": 3}
    with pytest.raises(RecordError, match=r"schema 2\.00"):
        decode_record(encode({**wire, "schema": 200}))


def test_every_kind_of_record_survives_the_wire() -> None:
    header = Header("run", "Env", "g", "g.0", 1, 4)
    finished = RolloutFinished(header, RolloutStatus.FAILED, None, {}, {"type": "X", "message": "y"}, 3, b"12", 0.5)
    assert decode_record(encode_record(finished)) == finished
    step = step_of(header, 1, 1, 2)
    again = decode_record(encode_record(step))
    assert isinstance(again, Step)
    assert again.nodes[1].run.logprobs.tolist() == [-0.25, -0.25]
    assert again.versions == step.versions
    assert again.leaf == 3
