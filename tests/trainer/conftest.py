"""Rollouts that need no engine: their records as a worker would put them, to be delivered as a test likes."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from renderers_adapter.tokens import ExpandedIds, TokenRun, logical
from rollout.environments.base import Task
from rollout.evidence import VersionSpan, prompt_digest
from rollout.steps import Header, NodeRecord, RolloutStatus, Step
from rollout.stream import RolloutId, RolloutStream
from transports import Frames

Packet = tuple[Frames, str, str]


class Outbox:
    """Takes what a stream puts, so that a test can deliver it as it likes."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        self.packets.append((frames, key, tag))


def step_of(header: Header, turn: int, version: str) -> Step:
    asked = TokenRun(logical([1, 2, 3 + turn]), 3)
    said = TokenRun(logical([9, 20 + turn, 2]), 1, np.full(2, -0.25, np.float32))
    return Step(
        header=header,
        turn=turn,
        parent=2 * turn - 1,
        first=2 * turn,
        nodes=(
            NodeRecord({"role": "user", "content": f"question {turn}"}, asked),
            NodeRecord({"role": "assistant", "content": f"answer {turn}"}, said),
        ),
        images={},
        prompt_source="bridge",
        prompt_length=0,
        prompt_digest=b"",
        finish_reason="stop",
        versions=(VersionSpan(version, 0, 2),),
    )


async def play(
    rollout: str = "000000.0",
    *,
    run: str = "run",
    environment: str = "Env",
    group: str | None = None,
    attempt: int = 1,
    turns: int = 3,
    size: int = 1,
    version: str = "7",
) -> list[Packet]:
    """All records of one attempt. Its reward is its number, so that a trajectory tells which attempt it was."""
    outbox: Any = Outbox()
    group = rollout.rpartition(".")[0] if group is None else group
    stream = RolloutStream(outbox, RolloutId(run, environment, group, rollout, 0, size, attempt))
    task = Task(group, 0, 1)
    await stream.started(task, policy_version=version, config_digest="c", model="m", pad_id=99, assets="", layout={})
    path: list[int] = []
    for turn in range(turns):
        step = step_of(stream.next_header(), turn, version)
        path += [1, 2, 3 + turn, 9]
        digest = prompt_digest(ExpandedIds(logical(path)), [])
        await stream.step(replace(step, prompt_length=len(path), prompt_digest=digest))
        path += [20 + turn, 2]
    await stream.finished(RolloutStatus.OK, reward=float(attempt))
    return list(outbox.packets)


@pytest.fixture
def played() -> Callable[..., Awaitable[list[Packet]]]:
    return play
