"""Measures how many trajectories a second one core reads, assembles, samples and collates.

    python benchmarks/trainer.py                       15 turns, 15 images by reference, groups of 4, a file queue
    python benchmarks/trainer.py --image-tokens 64     images of 224 x 224 pixels; the default is 1024 x 768
    python benchmarks/trainer.py --rollouts 2000 --turns 50

A rate is rollouts per second of CPU time of all threads of the process, with the stages before it. It is the best of
five rounds. Each round measures everything once, so that other load on the machine affects all rates. Collating needs
torch. If verifiers 0.4.0 is installed, its rates for the same content and the ratios are printed, too;
`benchmarks/trainer_verifiers.py` says what is compared.
"""

import argparse
import asyncio
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rollout.trainer import Group, ReaderSettings, open_reader, samples  # noqa: E402
from rollout.trainer.testing import put_all, scripted_rollout  # noqa: E402
from transports import open_queue  # noqa: E402

GROUP_SIZE = 4
QUESTION_TOKENS, ANSWER_TOKENS = 40, 45
ROUNDS = 5
COLLATED = "… and collated"
TARGET = 2.0
PUBLISHED_VERIFIERS_RATE = 149.0
"""The rollouts per second and core that verifiers only decodes, as measured by others."""

Work = Callable[[Group], object]


async def fill(url: str, rollouts: int, turns: int, image_tokens: int) -> int:
    """Fill the queue with rollouts; return the bytes of one rollout."""
    async with open_queue(url) as queue:
        for number in range(rollouts):
            name = f"{number // GROUP_SIZE:06d}.{number % GROUP_SIZE}"
            packets = await scripted_rollout(
                name,
                group_size=GROUP_SIZE,
                turns=turns,
                question_tokens=QUESTION_TOKENS,
                answer_tokens=ANSWER_TOKENS,
                image_tokens=image_tokens,
                assets="/data/run/assets/images",
            )
            await put_all(queue, packets)
        return (await queue.stats()).backlog_bytes // rollouts


async def read(url: str, rollouts: int, work: Work) -> float:
    """Read all groups and do the work on each; return the rollouts per second of CPU time."""
    async with open_reader(url, settings=ReaderSettings(require_images=False)) as reader:
        begin, read_count = time.process_time(), 0
        while read_count < rollouts:
            group = await reader.receive_group(timeout=10)
            assert group is not None
            work(group)
            read_count += len(group.trajectories)
        return rollouts / (time.process_time() - begin)


def stages() -> Sequence[tuple[str, Work]]:
    """Return the names of the stages, and their work on a group."""
    named_stages: list[tuple[str, Work]] = [
        ("read and assembled", lambda group: group),
        ("… and sampled", lambda group: [samples(trajectory) for trajectory in group.trajectories]),
    ]
    if find_spec("torch"):
        batch_of = importlib.import_module("rollout.trainer.batches.tensors").batch_of
        named_stages.append((COLLATED, lambda group: batch_of([group])))
        named_stages.append(("… packed into rows of 32,768", lambda group: batch_of([group], packing=32_768)))
    return named_stages


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=400, help="how many rollouts to read")
    parser.add_argument("--turns", type=int, default=15, help="turns of a rollout")
    parser.add_argument("--image-tokens", type=int, default=768, help="tokens of an image")
    arguments = parser.parse_args()
    rollouts = arguments.rollouts - arguments.rollouts % GROUP_SIZE
    description = f"{arguments.turns} turns and as many images of {arguments.image_tokens} tokens"
    print(f"{rollouts} rollouts of {description}, in groups of {GROUP_SIZE}")
    directory = Path(tempfile.mkdtemp())
    try:
        asyncio.run(measure(directory, rollouts, arguments.turns, arguments.image_tokens))
    finally:
        shutil.rmtree(directory)


async def measure(directory: Path, rollouts: int, turns: int, image_tokens: int) -> None:
    """Measure all stages in several rounds, and print the best rates."""
    filled, copied = directory / "filled", directory / "copied"
    nbytes = await fill(f"file://{filled}?high_water=4GB", rollouts, turns, image_tokens)
    measure_verifiers = await verifiers_measurement(f"file://{filled}?replay=true")
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, work in stages():
            shutil.copytree(filled, copied)
            rate = await read(f"file://{copied}?high_water=4GB", rollouts, work)
            shutil.rmtree(copied)
            best[name] = max(rate, best.get(name, 0.0))
        for name, rate in measure_verifiers(rollouts).items():
            best[name] = max(rate, best.get(name, 0.0))
    for name, rate in best.items():
        print(f"  {name:<42} {rate:7.0f} rollouts/s")
    print(f"  one of our rollouts has {nbytes:,} bytes")
    compare(best)


async def verifiers_measurement(url: str) -> Callable[[int], dict[str, float]]:
    """Return a function that measures verifiers with the first rollout of a queue, if verifiers is installed."""
    if not find_spec("verifiers"):
        print("  verifiers 0.4.0 is not installed; run `pip install verifiers==0.4.0` to measure it, too")
        return lambda rollouts: {}
    verifiers_benchmark = importlib.import_module("benchmarks.trainer_verifiers")
    async with open_reader(url, settings=ReaderSettings(require_images=False)) as reader:
        trajectory = await reader.receive(timeout=10)
    assert trajectory is not None
    wire = verifiers_benchmark.encode_rollout(trajectory)
    verifiers_benchmark.require_same(wire, *samples(trajectory))
    print(f"  a rollout of verifiers has {wire.nbytes:,} bytes")
    return lambda rollouts: dict(verifiers_benchmark.measure(wire, rollouts))


def compare(best: dict[str, float]) -> None:
    """Print the ratios to the rates of verifiers."""
    if COLLATED not in best:
        print("  collating was not measured, because torch is not installed")
        return
    print(
        f"  collated: {best[COLLATED] / PUBLISHED_VERIFIERS_RATE:.2f} times the {PUBLISHED_VERIFIERS_RATE:.0f} "
        "rollouts/s of verifiers' decoding, as measured by others"
    )
    for name in (name for name in best if name.startswith("verifiers")):
        print(f"  collated / {name:<31} {best[COLLATED] / best[name]:7.2f} (target: {TARGET:g})")


if __name__ == "__main__":
    main()
