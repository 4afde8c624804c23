"""Measures the CPU time of a turn in the process that serves an agent program, for the gateway and for verifiers 0.4.0.

    python -m benchmarks.gateway [--conversations 1 64 1000] [--rounds 3] [--deep] [--json]

A driver in this process plays the same conversations with both servers over HTTP (`gateway_driver.py`). Both use the
same engine stub, in a process of its own (`engine_stub.py`). A text turn adds about 90 tokens: the policy's tool call
and its result. An image turn adds one new 224x224 JPEG of 30 KB as a `data:` URI. Each figure is the median of the
rounds, and a round measures five turns around turn 5, 50 or 200. The floor is `orjson.loads` of the same bodies.

Many conversations at once are not played to the end, so that a run ends after some minutes: 64 up to turn 50, 1,000 up
to turn 5, and both in one round. `--deep` plays 64 with text up to turn 200, which takes ten minutes more. If verifiers
is not installed, ours is measured alone. The exit status is 1 if a bound does not hold.
"""

import argparse
import asyncio
import importlib
import importlib.util
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import orjson

from benchmarks.engine_stub import running_stub
from benchmarks.gateway_driver import ANSWER, ServingProcess, Window, serving_process
from benchmarks.gateway_rollout import serve_ours

OURS, THEIRS = "rollout", "verifiers"
SHARES = {50: 0.5, 200: 0.25}
GROWTH = 2.0
EARLY, LATE = 5, 200
_MANY, _VERY_MANY = 16, 500
"""Numbers of conversations from which on fewer turns are played."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of conversations.

    Attributes:
        conversations: how many are played at once.
        images: whether every turn has a new image.
        turns: the turns that are measured.
        rounds: how often the case is played.
    """

    conversations: int
    images: bool
    turns: tuple[int, ...]
    rounds: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.conversations:,} at once, {'images' if self.images else 'text'}"


@dataclass(frozen=True, slots=True)
class Figure:
    """The CPU milliseconds of one turn.

    Attributes:
        case: the name of the case.
        turn: the turn.
        ours: of the gateway's process.
        theirs: of the process of verifiers' server; None without verifiers.
        floor: of `orjson.loads` of the same bodies.
        body_bytes: the size of a body.
    """

    case: str
    turn: int
    ours: float
    theirs: float | None
    floor: float
    body_bytes: int


def cases(conversations: Sequence[int], rounds: int, *, deep: bool) -> Iterator[Case]:
    """Yield the cases. The more conversations, the fewer turns."""
    for count in conversations:
        for images in (False, True):
            few, many = count < _MANY, count >= _VERY_MANY
            turns = (
                (EARLY, 50, LATE) if few or (deep and not many and not images) else (EARLY,) if many else (EARLY, 50)
            )
            yield Case(count, images, turns, rounds if few else 1)


async def measure(servers: Mapping[str, ServingProcess], case: Case) -> list[Figure]:
    """Play the case with all servers in turn, so that other load on the machine meets all of them."""
    rounds: dict[str, list[dict[int, Window]]] = {who: [] for who in servers}
    for _ in range(case.rounds):
        for who, server in servers.items():
            rounds[who].append(await server.play(case.conversations, case.turns, images=case.images))
    figures = []
    for turn in case.turns:
        windows = {who: [played[turn] for played in rounds[who]] for who in servers}
        if len({window.prompt_tokens for played in windows.values() for window in played}) > 1:
            counts = {who: [window.prompt_tokens for window in played] for who, played in windows.items()}
            raise RuntimeError(f"{case.name}, turn {turn}: the prompts have different numbers of tokens: {counts}")
        spent = {who: statistics.median(window.milliseconds for window in played) for who, played in windows.items()}
        bodies = windows[OURS][0].bodies
        size = len(bodies[len(bodies) // 2])
        figures.append(Figure(case.name, turn, spent[OURS], spent.get(THEIRS), parse_milliseconds(bodies), size))
    return figures


def parse_milliseconds(bodies: Sequence[bytes]) -> float:
    """Return the CPU milliseconds of `orjson.loads` of a body."""
    spent = []
    for _ in range(5):
        for body in bodies:
            began = time.process_time()
            orjson.loads(body)
            spent.append(1000 * (time.process_time() - began))
    return statistics.median(spent)


def growth(figures: Sequence[Figure]) -> float | None:
    """Return by how much ours grows from the early to the late turn, without the floor; None if one is missing."""
    own = {figure.turn: figure.ours - figure.floor for figure in figures}
    return own[LATE] / own[EARLY] if EARLY in own and LATE in own else None


def print_case(figures: Sequence[Figure]) -> list[str]:
    """Print the figures of a case; return the bounds that do not hold."""
    broken = []
    for figure in figures:
        share = None if figure.theirs is None else figure.ours / figure.theirs
        bound = SHARES.get(figure.turn)
        if share is not None and bound is not None and share > bound:
            broken.append(f"{figure.case}, turn {figure.turn}: ours / theirs is {share:.2f}, more than {bound}")
        theirs, ratio = ("–", "–") if share is None else (f"{figure.theirs:.2f}", f"{share:.2f}")
        row = f"{figure.case:24} {figure.turn:>4} {figure.body_bytes / 1000:>8,.0f} {figure.floor:>7.2f}"
        print(f"{row} {figure.ours:>8.2f} {theirs:>9} {ratio:>6} {bound or '':>6}", flush=True)
    grown = growth(figures)
    if grown is not None:
        print(f"{'':24} ours without the floor grows {grown:.2f} times from turn {EARLY} to {LATE} (bound: {GROWTH})")
        if grown >= GROWTH:
            broken.append(f"{figures[0].case}: ours grows {grown:.2f} times, the bound is {GROWTH}")
    return broken


async def measure_all(servers: Mapping[str, ServingProcess], planned: Sequence[Case]) -> tuple[list[Figure], list[str]]:
    """Measure and print all cases; return the figures, and the bounds that do not hold."""
    for server in servers.values():
        await server.play(2, [EARLY], images=True)  # warms up
    measured, broken = [], []
    columns = f"{'turn':>4} {'body KB':>8} {'floor':>7} {OURS:>8} {THEIRS:>9} {'ratio':>6} {'bound':>6}"
    print(f"{'CPU ms per turn':24} {columns}", flush=True)
    for case in planned:
        figures = await measure(servers, case)
        broken += print_case(figures)
        measured += figures
    return measured, broken


def main() -> int:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 64, 1000], help="how many at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often one conversation at a time is played")
    parser.add_argument("--deep", action="store_true", help="play 64 conversations at once up to turn 200, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object after the table")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        url = stack.enter_context(running_stub(ANSWER))
        servers = {OURS: stack.enter_context(serving_process(serve_ours, url, directory))}
        if importlib.util.find_spec("verifiers"):
            serve_theirs = importlib.import_module("benchmarks.gateway_verifiers").serve_theirs
            servers[THEIRS] = stack.enter_context(serving_process(serve_theirs, url))
        planned = list(cases(arguments.conversations, arguments.rounds, deep=arguments.deep))
        measured, broken = asyncio.run(measure_all(servers, planned))
    if arguments.json:
        print(json.dumps({"figures": [asdict(figure) for figure in measured], "broken": broken}))
    for line in broken:
        print(f"a bound does not hold: {line}")
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
