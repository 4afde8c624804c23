"""SIGKILL of trainers at any moment: the last checkpoint has trained every trajectory exactly once."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rollout.trainer.testing import Packet, put_all, scripted_rollout
from tests.needs.services.redis_server import RedisServer
from tests.procfs import is_alive
from transports import Queue, open_queue

SERVICES = os.environ.get("ROLLOUT_SERVICES") == "1"
KILLS = 200 if os.environ.get("ROLLOUT_TESTS") == "full" else 50
IN_EACH_WINDOW = 10
GROUP_SIZE = 2
PATIENCE = 60.0


@dataclass
class Feed:
    """Puts groups as workers do; some attempts stall, and finish before, between or long after the others."""

    chance: random.Random
    groups: int = 0
    damaged: int = 0
    stalled_packets: list[list[Packet]] = field(default_factory=list)

    async def put_group(self, queue: Queue) -> None:
        """Put one more group, and perhaps the rest of an attempt that stalled earlier."""
        name = f"{self.groups:05d}"
        self.groups += 1
        for sample in range(GROUP_SIZE):
            rollout = f"{name}.{sample}"
            packets = await scripted_rollout(rollout, group_size=GROUP_SIZE, turns=2)
            if self.chance.random() < 0.3:
                cut = self.chance.randrange(len(packets))
                await put_all(queue, packets[:cut])
                self.stalled_packets.append(packets[cut:])
                packets = await scripted_rollout(rollout, group_size=GROUP_SIZE, turns=2, attempt=2)
            elif self.chance.random() < 0.1:
                self.damaged += 1
                packets[1] = packets[1]._replace(frames=(b"\xc1",))
            await put_all(queue, packets)
        if self.stalled_packets and self.chance.random() < 0.5:
            await put_all(queue, self.stalled_packets.pop(self.chance.randrange(len(self.stalled_packets))))


@dataclass
class TrainerGroup:
    """The trainers of one test. One process forks them all, so that they start quickly."""

    spawner: "subprocess.Popen[str]"
    directory: Path
    url: str = ""
    world_size: int = 1
    feed: Feed = field(default_factory=lambda: Feed(random.Random(11)))

    def start(self, rank: int = 0, *, die_at: str = "", die_after: int = 0, idle: float = 0.0) -> int:
        assert self.spawner.stdin is not None
        assert self.spawner.stdout is not None
        command = {
            "url": self.url,
            "checkpoint": str(self.checkpoint(rank)),
            "rank": rank,
            "world_size": self.world_size,
        }
        self.spawner.stdin.write(json.dumps({**command, "die_at": die_at, "die_after": die_after, "idle": idle}) + "\n")
        self.spawner.stdin.flush()
        return int(self.spawner.stdout.readline())

    def checkpoint(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.json"

    def weights(self, rank: int) -> list[list[str]]:
        path = self.checkpoint(rank)
        weights: list[list[str]] = json.loads(path.read_text())["weights"] if path.exists() else []
        return weights

    async def feed_while_alive(self, pid: int, queue: Queue, seconds: float = PATIENCE) -> bool:
        """Put groups until a trainer dies; return whether it died in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_alive(pid):
                return True
            await self.feed.put_group(queue)
            await asyncio.sleep(0.01)
        return False

    async def finish(self, queue: Queue) -> None:
        """Let the trainers train everything that is left."""
        await asyncio.gather(*(put_all(queue, packets) for packets in self.feed.stalled_packets))
        self.feed.stalled_packets.clear()
        pids = [self.start(rank, idle=1.5) for rank in range(self.world_size)]
        deadline = time.monotonic() + PATIENCE
        while any(map(is_alive, pids)):
            assert time.monotonic() < deadline, "the trainers did not finish"
            await asyncio.sleep(0.05)

    def report(self, kills: Counter[str]) -> None:
        groups = [group for rank in range(self.world_size) for group in self.weights(rank)]
        trained = Counter(member for group in groups for member in group)
        wanted = {f"{number:05d}.{sample}" for number in range(self.feed.groups) for sample in range(GROUP_SIZE)}
        trained_counts = Counter(member.partition(" ")[0] for member in trained.elements())
        lost = len(wanted - trained_counts.keys())
        duplicated = sum(count - 1 for count in trained_counts.values())
        failed = sum(count for member, count in trained.items() if member.endswith("failed"))
        print(
            f"kills {sum(kills.values())} ({', '.join(f'{name} {count}' for name, count in sorted(kills.items()))}), "
            f"trajectories {len(wanted)}, damaged {self.feed.damaged}, lost {lost}, duplicated {duplicated}",
            file=sys.__stdout__,
        )
        assert not lost
        assert not duplicated
        assert failed == self.feed.damaged
        assert all(len(group) == GROUP_SIZE for group in groups)


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[TrainerGroup]:
    script = Path(__file__).with_name("checkpointing_trainer.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as spawner:
        yield TrainerGroup(spawner, tmp_path)
        assert spawner.stdin is not None
        spawner.stdin.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", "--appendonly", "yes")
    yield server
    server.kill()


async def test_a_trainer_killed_at_any_moment_trains_every_trajectory_once(trainers: TrainerGroup) -> None:
    trainers.url = f"file://{trainers.directory}/queue?partitions=2&lease_time=0.2"
    await kill_one(trainers)


async def test_one_of_two_ranks_is_killed_and_the_other_continues(trainers: TrainerGroup) -> None:
    trainers.url = f"file://{trainers.directory}/queue?partitions=4&lease_time=0.2"
    await kill_one_of_two(trainers)


if SERVICES:

    async def test_a_trainer_of_a_redis_queue_killed_at_any_moment_trains_every_trajectory_once(
        trainers: TrainerGroup, redis: RedisServer
    ) -> None:
        trainers.url = f"{redis.url}?partitions=2&lease_time=0.2"
        await kill_one(trainers)

    async def test_one_of_two_ranks_of_a_redis_queue_is_killed_and_the_other_continues(
        trainers: TrainerGroup, redis: RedisServer
    ) -> None:
        trainers.url = f"{redis.url}?partitions=4&lease_time=0.2"
        await kill_one_of_two(trainers)


async def kill_one(trainers: TrainerGroup) -> None:
    """Kill one trainer in turns between step and checkpoint, between checkpoint and ack, and at a random point."""
    chance = trainers.feed.chance
    kills: Counter[str] = Counter()
    async with open_queue(trainers.url) as queue:
        for number in range(KILLS):
            moment = ("stepped", "saved", "anywhere")[number % 3]
            if moment == "anywhere":
                pid = trainers.start()
                await trainers.feed_while_alive(pid, queue, chance.uniform(0.05, 0.6))
                os.kill(pid, signal.SIGKILL)
            else:
                pid = trainers.start(die_at=moment, die_after=chance.randrange(4))
                assert await trainers.feed_while_alive(pid, queue), f"the trainer did not reach the point {moment}"
            kills[moment] += 1
        await trainers.finish(queue)
        assert (await queue.stats()).backlog_records == 0
    assert min(kills["stepped"], kills["saved"]) >= IN_EACH_WINDOW
    trainers.report(kills)


async def kill_one_of_two(trainers: TrainerGroup) -> None:
    """The first rank continues while the second is dead; when it is back, the second gets all of its own groups."""
    chance = trainers.feed.chance
    kills: Counter[str] = Counter()
    trainers.world_size = 2
    async with open_queue(trainers.url) as queue:
        steady = trainers.start(0)
        for number in range(KILLS // 5):
            moment = ("stepped", "saved")[number % 2]
            pid = trainers.start(1, die_at=moment, die_after=chance.randrange(3))
            assert await trainers.feed_while_alive(pid, queue)
            kills[moment] += 1
            before = len(trainers.weights(0))
            deadline = time.monotonic() + PATIENCE
            while len(trainers.weights(0)) < before + 4:
                assert time.monotonic() < deadline, "the other rank made no progress"
                await trainers.feed.put_group(queue)
                await asyncio.sleep(0.01)
        os.kill(steady, signal.SIGKILL)
        await trainers.finish(queue)
        assert (await queue.stats()).backlog_records == 0
    ranks = [{group[0].partition(".")[0] for group in trainers.weights(rank)} for rank in (0, 1)]
    assert ranks[0]
    assert ranks[1]
    assert not ranks[0] & ranks[1]
    trainers.report(kills)
