"""Measures the CPU time of a turn with the renderer `template`, beside that of the built-in renderer `qwen3`.

    python -m benchmarks.chat_templates [--turns 200] [--rounds 15] [--json]

Both render the same conversation, once with a chat template of qwen3's form: a system message, three tools and a
question, then a tool's result of about 70 tokens at each turn. The engine is a stub in its own process. The renderers
play in turn, so that other load on the machine meets both. The script exits with 1 if a bound does not hold.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

from benchmarks.conversation_parts import WORDS
from benchmarks.engine_stub import MODEL, running_stub
from benchmarks.gateway_driver import TOOLS
from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT, RendererOptions
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import RenderedMessages
from rollout.engine.client import EngineClient
from rollout.images import ImagePolicy
from rollout.records.messages import Message
from rollout.records.stream import AttemptId, RolloutStream
from rollout.serving import tiny_model
from rollout.serving.tiny_model.families import SHIPPED_MODEL_DIRECTORY
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from transports import open_queue

TEMPLATE, BUILT_IN = "template", "qwen3"
TEMPLATE_FILE = Path(tiny_model.__file__).parent / "templates" / "qwen3.jinja"
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "the left corner", "size": 4}}\n</tool_call>'
FIRST, EARLY = 1, 16
BOUNDS = {FIRST: 1.5, EARLY: 2.0}
"""The highest ratio of a turn's CPU time by turn. The first prompt is rendered, the others are bridged."""
_NEAR_TURNS = 8
"""A figure is the median of so many turns up to its turn, because single turns are disturbed. Turn 1 stands alone."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The CPU milliseconds of one turn.

    Attributes:
        turn: the turn, from 1.
        template: the whole turn with the renderer `template`.
        built_in: the whole turn with the built-in renderer.
        template_call: the call of the renderer alone.
        built_in_call: the same of the built-in renderer.
    """

    turn: int
    template: float
    built_in: float
    template_call: float
    built_in_call: float

    @property
    def ratio(self) -> float:
        """How many times as much a turn costs with the template."""
        return self.template / self.built_in

    @property
    def holds(self) -> bool:
        """Whether the bound of this turn holds."""
        return self.ratio <= BOUNDS.get(self.turn, float("inf"))


class MeasuredPool(RendererPool):
    """A pool that knows the CPU milliseconds of each prompt that it made."""

    def __init__(self, adapter: RendererAdapter) -> None:
        super().__init__(adapter)
        self.rendered: list[float] = []
        self.bridged: list[float] = []

    async def render(self, *arguments: Any, **options: Any) -> RenderedMessages:
        """See `RendererPool.render`."""
        began = time.process_time()
        result = await super().render(*arguments, **options)
        self.rendered.append(1000 * (time.process_time() - began))
        return result

    async def bridge(self, *arguments: Any, **options: Any) -> RenderedMessages:
        """See `RendererPool.bridge`."""
        began = time.process_time()
        result = await super().bridge(*arguments, **options)
        self.bridged.append(1000 * (time.process_time() - began))
        return result


@dataclass(frozen=True, slots=True)
class Played:
    """The CPU milliseconds of a rollout.

    Attributes:
        turns: of each turn.
        calls: of the renderer's call in each turn.
    """

    turns: Sequence[float]
    calls: Sequence[float]


async def play(policy: PolicyClient, pool: MeasuredPool, number: int, turns: int) -> Played:
    """Play a rollout.

    Raises:
        RuntimeError: the answer was not read as a call, or a turn was not bridged.
    """
    pool.rendered, pool.bridged = [], []
    spent = []
    words = " ".join((WORDS * 4)[:45])
    conversation: list[Message] = [
        {"role": "system", "content": f"You look at paintings. {words}"},
        {"role": "user", "content": f"Rollout {number}. {words}"},
    ]
    async with open_queue(f"memory://{uuid.uuid4().hex}") as queue:
        session = Session(policy, RolloutStream(queue, AttemptId("benchmark", "templates", "0", "0.0", 0, 1, 1)))
        for turn in range(1, turns + 1):
            began = time.process_time()
            reply = await session.chat(conversation, tools=TOOLS)
            spent.append(1000 * (time.process_time() - began))
            calls = reply.message.get("tool_calls")
            if not calls:
                raise RuntimeError(f"turn {turn}: the engine's answer was not read as a tool call: {reply.message}")
            result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": f"Result {turn}. {words}"}
            conversation += [reply.message, result]
            while (delivery := await queue.receive(timeout=0)) is not None:
                await delivery.ack()
    if len(pool.rendered) != 1 or len(pool.bridged) != turns - 1:
        raise RuntimeError(f"{len(pool.bridged)} of {turns - 1} turns were bridged")
    return Played(spent, [*pool.rendered, *pool.bridged])


async def measure(turns: int, rounds: int, directory: Path) -> list[Figure]:
    """Let both renderers play one long rollout and several short ones in turn; return the figures."""
    pools = {
        TEMPLATE: MeasuredPool(
            RendererAdapter.open(
                SHIPPED_MODEL_DIRECTORY,
                TEMPLATE,
                RendererOptions({TEMPLATE_FILE_ARGUMENT: str(TEMPLATE_FILE)}, tool_parser="qwen3"),
            )
        ),
        BUILT_IN: MeasuredPool(RendererAdapter.open(SHIPPED_MODEL_DIRECTORY, BUILT_IN)),
    }
    played: dict[str, list[Played]] = {name: [] for name in pools}
    with running_stub(CALL) as url:
        async with EngineClient([url], MODEL, timeout=60) as client:
            await client.check()
            for number in range(-1, rounds):
                for name, pool in pools.items():
                    policy = PolicyClient(pool, client, ImagePolicy("offload", directory), {"temperature": 0.0})
                    rollout = await play(policy, pool, number, turns if number == 0 else min(turns, EARLY))
                    if number >= 0:  # the first one warms up
                        played[name].append(rollout)
    return [figure(played, turn) for turn in sorted({FIRST, EARLY, turns})]


def figure(played: Mapping[str, Sequence[Played]], turn: int) -> Figure:
    """Return the medians of a turn."""
    first = turn - 1 if turn == FIRST else max(FIRST, turn - _NEAR_TURNS)

    def median(lists: Sequence[Sequence[float]]) -> float:
        return statistics.median(spent for one in lists if len(one) >= turn for spent in one[first:turn])

    turns = {name: median([rollout.turns for rollout in rollouts]) for name, rollouts in played.items()}
    calls = {name: median([rollout.calls for rollout in rollouts]) for name, rollouts in played.items()}
    return Figure(turn, turns[TEMPLATE], turns[BUILT_IN], calls[TEMPLATE], calls[BUILT_IN])


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200, help="turns of the long rollout")
    parser.add_argument("--rounds", type=int, default=15, help="how many rollouts each renderer plays")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    if arguments.turns < EARLY:
        parser.error(f"--turns must be at least {EARLY}, because turn {EARLY} has a bound")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory() as directory:
        figures = anyio.run(measure, arguments.turns, arguments.rounds, Path(directory))
    if arguments.json:
        print(json.dumps([{**asdict(figure), "ratio": figure.ratio} for figure in figures]))
    else:
        print(f"{'CPU ms':9} {'template':>9} {BUILT_IN:>9} {'ratio':>6}   {'the call alone':>14} {BUILT_IN:>9}")
        for row in figures:
            bound = f" (bound: {BOUNDS[row.turn]})" if row.turn in BOUNDS else ""
            print(
                f"turn {row.turn:4} {row.template:9.2f} {row.built_in:9.2f} {row.ratio:6.2f}   "
                f"{row.template_call:14.2f} {row.built_in_call:9.2f}{bound}"
            )
    sys.exit(0 if all(row.holds for row in figures) else 1)


if __name__ == "__main__":
    main()
