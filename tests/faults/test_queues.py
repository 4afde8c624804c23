"""SIGKILL at random points under load: no accepted record is lost, and each is read once and in order."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.needs.services.redis_server import RedisServer, free_port
from tests.procfs import is_alive
from transports import open_queue

SERVICES = os.environ.get("ROLLOUT_SERVICES") == "1"
CYCLES = {"full": 200, "ci": 50}.get(os.environ.get("ROLLOUT_TESTS", ""), 12)
DRAIN_SECONDS = 120.0


@dataclass
class Peers:
    """The processes of one test, and what they logged."""

    server: "subprocess.Popen[str]"
    directory: Path
    url: str
    producer_options: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    start_count: int = 0

    def start(self, role: str, slot: str) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.start_count += 1
        name = f"{slot}-{self.start_count}"
        log = self.directory / ("consumed" if role == "consume" else f"accepted.{name}")
        url = self.url + (self.producer_options if role == "produce" else "")
        self.server.stdin.write(json.dumps({"role": role, "url": url, "name": name, "log": str(log)}) + "\n")
        self.server.stdin.flush()
        self.pids[slot] = int(self.server.stdout.readline())

    def kill(self, slot: str) -> None:
        os.kill(self.pids.pop(slot), signal.SIGKILL)

    def stop(self, slot: str) -> None:
        """Stop a producer with SIGTERM; it exits when all its records are acked."""
        pid = self.pids.pop(slot)
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_SECONDS
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def accepted(self) -> set[str]:
        return {
            f"{path.name.removeprefix('accepted.')} {number}"
            for path in self.directory.glob("accepted.*")
            for number in path.read_text().splitlines()
        }

    def consumed(self) -> list[str]:
        return (self.directory / "consumed").read_text().splitlines()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    script = Path(__file__).with_name("queue_peers.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        trial = Peers(server, tmp_path, "")
        yield trial
        for slot in list(trial.pids):
            with contextlib.suppress(ProcessLookupError):
                trial.kill(slot)
        assert server.stdin is not None
        server.stdin.close()


def test_sigkill_of_producers_and_consumers_of_a_file_queue_loses_and_duplicates_nothing(peers: Peers) -> None:
    peers.url = f"file://{peers.directory}/queue?partitions=2&lease_time=0.2&segment_bytes=256KB&high_water=2MB"
    kill_at_random(peers, {})
    report(peers)


if SERVICES:

    def test_sigkill_of_producers_consumers_and_the_redis_server_loses_and_duplicates_nothing(peers: Peers) -> None:
        files = peers.directory / "redis"
        files.mkdir()
        # With everysec, the server may answer before it has written the record.
        server = RedisServer(files, "--appendonly", "yes", "--appendfsync", "always")
        peers.url = f"{server.url}?partitions=2&lease_time=0.2&high_water=2MB"
        try:
            kill_at_random(peers, {"server": server})
        finally:
            server.kill()
        report(peers)

    def test_sigkill_of_the_consumer_that_serves_a_zmq_queue_loses_and_duplicates_nothing(peers: Peers) -> None:
        peers.url = f"zmq://127.0.0.1:{free_port()}?lease_time=0.5&high_water=2MB"
        peers.producer_options = "&serve=false"
        kill_at_random(peers, {}, victims=("consumer",))
        report(peers)


def kill_at_random(
    peers: Peers,
    servers: dict[str, RedisServer],
    victims: tuple[str, ...] = ("left", "right", "left", "right", "consumer"),
) -> None:
    """While records flow, kill and restart one of the peers or servers, CYCLES times; then let all finish."""
    chance = random.Random(7)
    peers.start("consume", "consumer")
    for slot in ("left", "right"):
        peers.start("produce", slot)
    for _ in range(CYCLES):
        wait_until_more_is_consumed(peers)
        time.sleep(chance.uniform(0.0, 0.1))
        victim = chance.choice([*victims, *servers])
        if victim in servers:
            servers[victim].kill()
            servers[victim].start()
        else:
            peers.kill(victim)
            peers.start("consume" if victim == "consumer" else "produce", victim)
    for slot in ("left", "right"):
        peers.stop(slot)
    wait_until_drained(peers)


def wait_until_more_is_consumed(peers: Peers) -> None:
    """Wait for progress; otherwise a slow machine would kill only peers that have done nothing yet."""
    log = peers.directory / "consumed"
    before = log.stat().st_size if log.exists() else 0
    deadline = time.monotonic() + DRAIN_SECONDS
    while not log.exists() or log.stat().st_size == before:
        assert time.monotonic() < deadline, f"nothing was consumed for {DRAIN_SECONDS} s"
        time.sleep(0.005)


def wait_until_drained(peers: Peers) -> None:
    async def backlog() -> int:
        async with open_queue(peers.url + peers.producer_options) as queue:
            return (await queue.stats()).backlog_records

    deadline = time.monotonic() + DRAIN_SECONDS
    while (left := asyncio.run(backlog())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"{left} records were not consumed within {DRAIN_SECONDS} s"


def report(peers: Peers) -> None:
    lines = peers.consumed()
    consumed = [line for line in lines if line != "redelivered"]
    lost = peers.accepted() - set(consumed)
    duplicated = len(consumed) - len(set(consumed))
    redeliveries = len(lines) - len(consumed)
    print(
        f"cycles {CYCLES}, records {len(consumed)}, redeliveries {redeliveries}, "
        f"lost {len(lost)}, duplicated {duplicated}",
        file=sys.__stdout__,
    )
    assert not lost
    assert not duplicated
    by_key = defaultdict(list)
    for line in consumed:
        name, number = line.split()
        by_key[name, int(number) % 3].append(int(number))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
