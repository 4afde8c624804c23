"""How many trajectories a second one core reads, assembles, samples and collates.

    python benchmarks/trainer.py                       15 turns, 15 images by reference, groups of 4, from a file queue
    python benchmarks/trainer.py --image-tokens 64     of 224 x 224 pixels; the default are 1024 x 768
    python benchmarks/trainer.py --rollouts 2000 --turns 50

Every rate is rollouts per second of CPU time, all threads of the process counted, the best of three, and includes the
stages before it.
Collating needs torch. Where verifiers 0.4.0 is installed beside us, the decoding of its wire for the same content, and
the arrays that a trainer needs of it, stand below, with the ratio.
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

from rollout.trainer import Group, ReaderSettings, Trajectory, open_reader, samples  # noqa: E402
from rollout.trainer.testing import put_all, scripted_rollout  # noqa: E402
from transports import open_queue  # noqa: E402

GROUP_SIZE = 4
ASKED, ANSWERED = 40, 45
REPEAT = 3
TARGET = 2.0
PUBLISHED = 149.0
"""Rollouts per second and core of verifiers' decoding alone, as it was measured elsewhere."""

Work = Callable[[Group], object]


async def fill(url: str, rollouts: int, turns: int, image_tokens: int) -> int:
    """The bytes of one rollout."""
    async with open_queue(url) as queue:
        for number in range(rollouts):
            name = f"{number // GROUP_SIZE:06d}.{number % GROUP_SIZE}"
            packets = await scripted_rollout(
                name,
                group_size=GROUP_SIZE,
                turns=turns,
                asked=ASKED,
                answered=ANSWERED,
                image_tokens=image_tokens,
                assets="/data/run/assets/images",
            )
            await put_all(queue, packets)
        return (await queue.stats()).backlog_bytes // rollouts


async def read(url: str, rollouts: int, work: Work) -> tuple[float, Trajectory]:
    """Rollouts per second of CPU time, and one of them."""
    async with open_reader(url, settings=ReaderSettings(require_images=False)) as reader:
        begin, found = time.process_time(), list[Trajectory]()
        while len(found) < rollouts:
            group = await reader.receive_group(timeout=10)
            assert group is not None
            work(group)
            found += group.trajectories
        rate = rollouts / (time.process_time() - begin)
        reader.state_dict()
        await reader.commit()
    return rate, found[0]


def stages() -> Sequence[tuple[str, Work]]:
    found: list[tuple[str, Work]] = [
        ("read and assembled", lambda group: group),
        ("… and sampled", lambda group: [samples(trajectory) for trajectory in group.trajectories]),
    ]
    if find_spec("torch"):
        batch_of = importlib.import_module("rollout.trainer.tensors").batch_of
        found.append(("… and collated", lambda group: batch_of([group])))
        found.append(("… packed into rows of 32,768", lambda group: batch_of([group], packing=32_768)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=400)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--image-tokens", type=int, default=768)
    arguments = parser.parse_args()
    rollouts = arguments.rollouts - arguments.rollouts % GROUP_SIZE
    told = f"{arguments.turns} turns and as many images of {arguments.image_tokens} tokens"
    print(f"{rollouts} rollouts of {told}, in groups of {GROUP_SIZE}")
    for name, work in stages():
        rate, nbytes, trajectory = best_of(work, rollouts, arguments.turns, arguments.image_tokens)
        print(f"  {name:<42} {rate:7.0f} rollouts/s  ({nbytes:,} bytes each)")
    if not find_spec("torch"):
        print(f"  {'… and collated':<42} torch is not installed")
    compare(rate, trajectory, rollouts)


def best_of(work: Work, rollouts: int, turns: int, image_tokens: int) -> tuple[float, int, Trajectory]:
    """Rate, bytes of a rollout, and one of them."""
    found = []
    for _ in range(REPEAT):
        directory = tempfile.mkdtemp()
        try:
            url = f"file://{directory}/queue?high_water=4GB"
            nbytes = asyncio.run(fill(url, rollouts, turns, image_tokens))
            rate, trajectory = asyncio.run(read(url, rollouts, work))
            found.append((rate, nbytes, trajectory))
        finally:
            shutil.rmtree(directory)
    return max(found, key=lambda run: run[0])


def compare(rate: float, trajectory: Trajectory, rollouts: int) -> None:
    print(f"  that is {rate / PUBLISHED:.2f} times the {PUBLISHED:.0f} of verifiers' decoding, as measured elsewhere")
    if not find_spec("verifiers"):
        print("  verifiers 0.4.0 is not installed beside us: pip install verifiers==0.4.0 to measure it here")
        return
    measure = importlib.import_module("benchmarks.trainer_verifiers").measure
    runs = [measure(trajectory, rollouts) for _ in range(REPEAT)]
    nbytes = runs[0].pop("bytes")
    for name in ("decoded", "decoded and made into arrays"):
        theirs = max(run[name] for run in runs)
        print(f"  verifiers: {name:<31} {theirs:7.0f} rollouts/s  ({nbytes:,.0f} bytes each)")
        print(f"  {'ours, over that':<42} {rate / theirs:7.2f} (to be reached: {TARGET:g})")


if __name__ == "__main__":
    main()
