"""Reads records with damaged fields as a trainer does: each rollout trains, or fails with a reason.

python -m tests.fuzz.fuzz_records --count 20000 --seed 0

A case is a rollout with some changed fields: numbers at their bounds, other types, other lengths, missing and unknown
keys, paths that hang or lead elsewhere. Some cases have a valid rollout, too, which must train.
"""

import asyncio
import copy
import functools
import logging
import math
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from renderers_adapter.tokens import LogicalIds, TokenRun, expand
from rollout.cli.inspect_conversation import conversation_lines
from rollout.cli.inspect_export import trajectory_document
from rollout.records.bounds import MAX_REWARD
from rollout.records.endings import RolloutStatus
from rollout.records.evidence import prompt_digest
from rollout.records.kinds import StepsDigest
from rollout.records.step_parts import decode_nodes
from rollout.trainer import (
    Group,
    ImagesUnreadable,
    Trajectory,
    TrajectoryReader,
    advantages_of,
    align_advantages,
    check,
    grpo,
    rloo,
    samples,
    turn_advantages_of,
)
from rollout.trainer.check import check_sample
from rollout.trainer.testing import PAD_ID, scripted_rollout
from tests.fuzz.fuzzing import fuzz
from transports import Delivery, Frames
from transports.codec import decode, encode
from transports.errors import CodecError

Rollouts = list[tuple[str, list[Frames]]]
"""The name and the records of each rollout, in the order in which they are read."""


class Case(NamedTuple):
    """The rollouts of a case, and whether they are also checked and inspected, which takes most of the time."""

    rollouts: Rollouts
    is_thorough: bool


LOOP = asyncio.new_event_loop()
IMAGES = Path(tempfile.gettempdir(), f"fuzz-records-{os.getpid()}")

NUMBERS = (
    *(0, -1, 1, 7, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.5, MAX_REWARD, -MAX_REWARD, 1e308, -1e308, float("nan"), float("inf")),
)
TEXTS = (
    *("", "text", "none", "time", "\ud83d", "x" * 1000, "9" * 5000, "\0", "/etc", "../.."),
    *(str(IMAGES), f"{IMAGES}/pipes", f"{IMAGES}/nothing"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, [0, 1.0, 9, 2.0], [0, MAX_REWARD, 1, MAX_REWARD], {"a": [MAX_REWARD, MAX_REWARD]}),
    *(b"", b"12345678", bytes(64), [], {}, [[]], [None], [0, 0], {"a": 1}, ("a", 1), ["text"], [{}]),
    *({"pixel_values": [1.0]}, {"type": "image", "hash": "../x"}, {"type": "ndarray"}, {"a": float("nan")}),
    *(np.zeros(0, np.int32), np.array(3), np.zeros((0, 1 << 18), np.int32), np.zeros((2, 2, 2), np.int64)),
    *(np.array([-1, 2**31 - 1], np.int32), np.array([np.nan, np.inf, -9999.0], np.float32)),
)
KEYS = ("pixel_values", "novelty", "hash", "function", "name", "text", "experts", "masks", "answer", "finish", "stop")


class GivenQueue:
    """A queue with the records of several rollouts."""

    url, ends = "fuzz://", True

    def __init__(self, rollouts: Rollouts) -> None:
        tagged = [
            (f"run/Scripted/{name}#1.{seq}", frames) for name, records in rollouts for seq, frames in enumerate(records)
        ]
        self._records = deque(enumerate(tagged))

    async def receive(self, *, timeout: float) -> Delivery | None:
        if not self._records:
            return None
        position, (tag, frames) = self._records.popleft()
        queue: Any = self
        return Delivery(frames, "g", tag, 0, "lane", position, redelivered=False, epoch=0, queue=queue)

    async def aclose(self) -> None:
        pass


@functools.cache
def valid_records(*, all_received: bool) -> list[Frames]:
    """Return the records of a rollout with images, a fork, tools, calls, experts and masks."""
    packets = asyncio.run(scripted_rollout("g.0", group_size=2, turns=2, image_tokens=4, assets=str(IMAGES)))
    started, first, second, finished = (decode(packet.frames) for packet in packets)
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"n": {}}}}}
    first |= {"tools": [tool], "stop": 5, "cached": 2, "source": "first", "finish": "length", "constrained": True}
    first["messages"][1] |= {"tool_calls": [call], "reasoning_content": "hm"}
    # The second question follows the first question, not its answer.
    runs = [decode_nodes(copy.deepcopy(step))[0].run for step in (first, second)]
    prompt = expand([*runs, TokenRun(LogicalIds(np.array([7], np.int32)), 1)], pad_id=PAD_ID)
    digest = prompt_digest(prompt.ids, [placeholder.hash for placeholder in prompt.placeholders])
    second |= {"parent": 0, "length": len(prompt.ids), "digest": digest}
    second["messages"][0]["content"].append({"type": "thinking", "thinking": "so"})
    second |= {"echo": "normalised", "source": "refused", "end_token": True}
    second["masks"] = {"ids": np.array([21, 22, 23], np.int32), "lengths": np.array([1, 2], np.int32)}
    second["experts"] = {"first": 5, "rows": np.zeros((len(prompt.ids) + 1 - 5, 2, 2), np.uint8)}
    finished |= {"limit": "tokens", "reward": 1.2, "rewards": {"answer": [1.0, 1.0], "format": [1.0, 0.2]}}
    finished |= {"turn_rewards": [0, 0.5, 1, -0.5], "root_kinds": {"subagent": [0]}}
    finished |= {} if all_received else {"unreceived_turns": [1]}
    return with_digest([encode(value) for value in (started, first, second, finished)])


@functools.cache
def neighbour_records() -> list[Frames]:
    """Return the records of a valid rollout of the same group."""
    rollout = scripted_rollout("g.1", group_size=2, turns=1, image_tokens=4, assets=str(IMAGES))
    return [packet.frames for packet in asyncio.run(rollout)]


def make(chance: random.Random) -> Case:
    records = list(valid_records(all_received=chance.random() < 0.5))
    for _ in range(chance.choice([0, 1, 1, 1, 2])):
        at = chance.randrange(len(records))
        if isinstance(value := decode(records[at]), dict) and value:
            damage(chance, value)
            records[at] = encode_or_text(value)
    rollouts = [("g.0", with_digest(records) if chance.random() < 0.9 else records)]
    if chance.random() < 0.1:
        rollouts.insert(chance.randrange(2), ("g.1", neighbour_records()))
    return Case(rollouts, chance.random() < 0.1)


def damage(chance: random.Random, value: Any) -> None:
    """Change one field of a record; every field is equally likely."""
    while True:
        key = chance.choice([*value] if isinstance(value, dict) else range(len(value)))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
            break
        value = inner
    choice = chance.random()
    if isinstance(inner, np.ndarray) and inner.ndim and choice < 0.7:
        value[key] = damaged_array(chance, inner)
    elif choice < 0.5:
        value[key] = chance.choice(NUMBERS if isinstance(inner, int | float) or choice < 0.1 else TEXTS)
    elif choice < 0.7:
        value[key] = copy.deepcopy(chance.choice(OTHERS))
    elif choice < 0.8:
        del value[key]
    elif isinstance(value, dict):
        value[chance.choice(KEYS)] = copy.deepcopy(chance.choice(OTHERS))
    else:
        value.insert(key, copy.deepcopy(inner))


def damaged_array(chance: random.Random, array: Any) -> Any:
    numbers = np.array(array)
    if numbers.size and chance.random() < 0.5:
        limits = (0, 1, 7) if numbers.dtype.kind == "u" else (-1, 2**31 - 1, PAD_ID)
        extremes = (np.nan, np.inf, -np.inf, -9999.0, 1.0, -0.5)
        numbers.flat[chance.randrange(numbers.size)] = chance.choice(extremes if numbers.dtype.kind == "f" else limits)
        return numbers
    return chance.choice(
        [numbers[:-1], numbers[:0], np.concatenate([numbers, numbers]), numbers[None], numbers.astype(np.float64)]
    )


def with_digest(records: list[Frames]) -> list[Frames]:
    """Return the records with the right digest of their steps, so that the reader joins them."""
    finished, digest = decode(records[-1]), StepsDigest()
    for step in records[1:-1]:
        digest.add(step)
    if not isinstance(finished, dict) or not isinstance(finished.get("digest"), bytes):
        return records
    return [*records[:-1], encode({**finished, "digest": digest.digest()})]


def encode_or_text(value: Any) -> Frames:
    try:
        return encode(value)
    except CodecError:
        return encode("not a record")


def attempt(case: Case) -> str:
    try:
        trajectories = LOOP.run_until_complete(read(case.rollouts))
    except ImagesUnreadable:
        assert len(case.rollouts) == 1, "the images of the valid rollout cannot be read"
        raise
    ends = [(trajectory.rollout, trajectory.status.value, trajectory.error) for trajectory in trajectories]
    assert len(ends) >= len(case.rollouts), f"a rollout is lost: {ends}"
    if len(case.rollouts) == 2:
        assert ("g.1", "ok", None) in ends, f"the valid rollout does not train: {ends}"
        group = Group("g", 2, tuple(trajectories))
        for estimator in (grpo, rloo):
            assert all(map(math.isfinite, advantages_of(group, estimator).values())), "an advantage is not finite"
            by_turn = turn_advantages_of(group, estimator)
            for sample in (sample for trajectory in trajectories for sample in samples(trajectory)):
                aligned = align_advantages(sample, by_turn[sample.rollout])
                assert np.isfinite(aligned).all(), "an advantage of a turn is not finite"
    damaged = [trajectory for trajectory in trajectories if trajectory.rollout != "g.1"]
    if case.is_thorough:
        inspect(damaged)
    return " and ".join(sorted(set(map(use, damaged))))


async def read(rollouts: Rollouts) -> list[Trajectory]:
    queue: Any = GivenQueue(rollouts)
    async with TrajectoryReader(queue) as reader:
        reader.version = 9
        found: list[Trajectory] = []
        while not reader.ended:
            if (trajectory := await reader.receive(timeout=1)) is not None:
                found.append(trajectory)
        return found


def inspect(trajectories: list[Trajectory]) -> None:
    for trajectory in trajectories:
        check(trajectory)
        for sample in samples(trajectory):
            assert check_sample(sample.truncated(7)) == []
        orjson.dumps(trajectory_document(trajectory))
        for line in conversation_lines(trajectory, None, full=True):
            line.encode()


def use(trajectory: Trajectory) -> str:
    """Do what a trainer does with a trajectory, and return how it ended."""
    found = samples(trajectory)
    if not trajectory.trainable:
        assert not found
        assert trajectory.error is not None or trajectory.status is not RolloutStatus.OK, "nothing says why it failed"
        return f"failed: {(trajectory.error or {}).get('type')}"
    for sample in found:
        assert trajectory.unreceived_turns.isdisjoint(sample.turn_index[sample.mask].tolist())
        assert math.isfinite(sample.logprobs.sum())
        assert math.isfinite(sample.token_rewards.sum())
        assert sample.token_ids.min() >= 0
    return "trains"


@contextmanager
def image_directory() -> Iterator[None]:
    """Make a directory of images, and in it a directory of named pipes with the same names."""
    logging.disable()
    with tempfile.TemporaryDirectory() as directory:
        IMAGES.symlink_to(directory)
        try:
            Path(directory, "pipes").mkdir()
            for number in range(2):
                name = f"{number:032x}{'0' * 32}.png"
                Path(directory, name).touch()
                os.mkfifo(Path(directory, "pipes", name))
            yield
        finally:
            IMAGES.unlink()


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(ImagesUnreadable,), around=image_directory))
