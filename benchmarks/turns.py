"""Measures the CPU time of a turn in the worker process, early and late in a long rollout. Medians of one run.

    python benchmarks/turns.py [--turns 200] [--rollouts 5] [--json]

The embedded engine runs in its own process, so that only the worker's side is measured: preparing images, matching,
bridging, the request, checking the answer, the trace, the record. A text turn adds about 85 tokens. An image turn adds
one new 224x224 JPEG of 40 KB as a `data:` URI, which is offloaded. If verifiers 0.4.0 is installed, the same
conversations run through its `TrainClient` and message graph, too, and again through ours. Both then use an engine stub
that answers at once, because the time that a worker waits for an engine also changes its CPU time.
"""

import argparse
import base64
import importlib
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

# A script in this folder is called transports too; the package of that name must be imported.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conversation_parts import WORDS, noisy_jpeg
from benchmarks.engine_stub import MODEL, running_stub
from renderers_adapter.pool import shared_pool
from rollout.engine.client import EngineClient
from rollout.images import ImagePolicy
from rollout.records.messages import Message
from rollout.records.stream import AttemptId, RolloutStream
from rollout.serving.embedded import TINY_MODEL, EmbeddedServer, EmbeddedSettings
from rollout.serving.server import serve_until_signal
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from transports import open_queue

EARLY = 16
Ask = Callable[[int], Message]


def text_turn(turn: int) -> Message:
    """Return the question of a text turn."""
    words = (WORDS * 5)[turn % 7 :][:45]
    return {"role": "user", "content": f"Turn {turn}. " + " ".join(words)}


def image_turn(turn: int) -> Message:
    """Return the question of an image turn."""
    uri = "data:image/jpeg;base64," + base64.b64encode(noisy_jpeg(turn)).decode()
    question = {"type": "text", "text": "What is the colour of this square?"}
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, question]}


@contextmanager
def engine(directory: Path, context_length: int) -> Iterator[str]:
    """Run an embedded engine in its own process; yield its root URL."""
    context = multiprocessing.get_context("spawn")
    announced: Any = context.Queue()
    settings = EmbeddedSettings(allowed_directories=(directory,), max_model_len=context_length)
    process = context.Process(target=_serve, args=(settings, announced), daemon=True)
    process.start()
    try:
        yield announced.get(timeout=60)
    finally:
        process.terminate()
        process.join(10)


def _serve(settings: EmbeddedSettings, announced: Any) -> None:
    serve_until_signal(EmbeddedServer(settings), announced.put)


async def one_rollout(policy: PolicyClient, ask: Ask, turns: int) -> list[float]:
    """Play one rollout; return the CPU milliseconds of each turn."""
    spent = []
    async with open_queue(f"memory://{uuid.uuid4().hex}") as queue:
        identity = AttemptId("benchmark", "turns", "0", "0.0", 0, 1, 1)
        session = Session(policy, RolloutStream(queue, identity))
        conversation: list[Message] = []
        for turn in range(turns):
            conversation.append(ask(turn))
            began = time.process_time()
            reply = await session.chat(conversation)
            spent.append(1000 * (time.process_time() - began))
            conversation.append(reply.message)
            while (delivery := await queue.receive(timeout=0)) is not None:
                await delivery.ack()
    return spent


async def measure_ours(directory: Path, ask: Ask, turns: int, rollouts: int) -> list[float]:
    """Return the CPU milliseconds of each turn with the embedded engine, as the median of the rollouts."""
    with engine(directory, 1024 * (turns + 8)) as url:
        return await play_rollouts(url, directory, ask, turns, rollouts)


async def measure_ours_with_stub(directory: Path, ask: Ask, turns: int, rollouts: int) -> list[float]:
    """Return the same with the engine stub, which verifiers is measured with."""
    with running_stub() as url:
        return await play_rollouts(url, directory, ask, turns, rollouts)


async def play_rollouts(url: str, directory: Path, ask: Ask, turns: int, rollouts: int) -> list[float]:
    """Play several rollouts; return the median CPU milliseconds of each turn."""
    renderers = shared_pool(TINY_MODEL, "qwen3-vl")
    async with EngineClient([url], MODEL, timeout=60) as client:
        await client.check()
        policy = PolicyClient(renderers, client, ImagePolicy("offload", directory), {"temperature": 0.0})
        await one_rollout(policy, ask, min(turns, EARLY))  # warms up
        runs = [await one_rollout(policy, ask, turns) for _ in range(rollouts)]
    return [statistics.median(turn) for turn in zip(*runs, strict=True)]


def median_around(turn: int, spent: list[float]) -> float:
    """Return the median of the turns around one turn, which hides garbage collection and timers."""
    return statistics.median(spent[max(0, turn - 4) : turn + 4])


def measure(benchmark: Callable[..., Any], turns: int, rollouts: int) -> dict[str, dict[str, float]]:
    """Measure image turns and text turns, early and late."""
    results = {}
    for name, ask in (("images", image_turn), ("text", text_turn)):
        with tempfile.TemporaryDirectory() as directory:
            spent = anyio.run(benchmark, Path(directory), ask, turns, rollouts)
        early, late = median_around(EARLY, spent), median_around(turns - 1, spent)
        results[name] = {"early": early, "late": late, "ratio": late / early}
    return results


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200, help="turns of a rollout")
    parser.add_argument("--rollouts", type=int, default=5, help="how many rollouts to play")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    if arguments.turns < EARLY:
        parser.error(f"--turns must be at least {EARLY}, because the last turn is compared with turn {EARLY}")
    results = {"rollout": measure(measure_ours, arguments.turns, arguments.rollouts)}
    if importlib.util.find_spec("verifiers"):
        turns_verifiers = importlib.import_module("benchmarks.turns_verifiers")
        results["rollout, stub"] = measure(measure_ours_with_stub, arguments.turns, arguments.rollouts)
        results["verifiers, stub"] = measure(turns_verifiers.measure_theirs, arguments.turns, arguments.rollouts)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{'CPU ms per turn':24} {'turn ' + str(EARLY):>9} {'turn ' + str(arguments.turns):>9} {'ratio':>6}")
    for who, kinds in results.items():
        for kind, row in kinds.items():
            print(f"{who + ', ' + kind:24} {row['early']:9.2f} {row['late']:9.2f} {row['ratio']:6.2f}")
    if "verifiers, stub" in results:
        for kind, row in results["rollout, stub"].items():
            theirs = results["verifiers, stub"][kind]
            shares = (f"{row[when] / theirs[when]:9.2f}" for when in ("early", "late"))
            print(f"{'rollout / verifiers, ' + kind:28} {' '.join(shares)}")


if __name__ == "__main__":
    main()
