"""Compares each transport with its floor, a bare queue with the same guarantees: one producer, one consumer, acks.

    python benchmarks/transports.py                    every backend whose client and server are installed, and peers
    python benchmarks/transports.py --backend file     one of the transports
    python benchmarks/transports.py --scale 0.2        fewer records

A rate is records per second at the consumer, from its first record to its last ack. Floor and transport run in turn,
and the best of `--repeat` runs counts. On a shared machine, look at the CPU time and at its ratio in the last column.
It is the CPU time of the busier of the two processes, without servers, from its first record until it has closed.
Peers are installed queues that a user could choose instead; they have fewer guarantees and no floor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

# This script has the same name as the package that it measures, so imports must start at the repository's root.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.transport_floors import FileFloor, Floor, MemoryFloor, RedisFloor, ZmqFloor  # noqa: E402
from benchmarks.transport_peers import PEERS  # noqa: E402
from benchmarks.transport_trials import Meter, Outcome, Trial  # noqa: E402
from transports import Queue, open_queue  # noqa: E402

SIZES = {"65 KB": (65_000, 6_000), "2.85 MB": (2_850_000, 200)}
TIMEOUT = 120.0


async def produce(queue: Queue | Floor, trial: Trial, meter: Meter) -> None:
    """Put all records of a trial."""
    payload = memoryview(os.urandom(trial.nbytes))
    for number in range(trial.count):
        await queue.put((payload,), key="k")
        meter.count()
        if number % 16 == 0:
            await asyncio.sleep(0)
    meter.stop()


async def consume(queue: Queue | Floor, trial: Trial, meter: Meter) -> None:
    """Receive and ack all records of a trial."""
    for _ in range(trial.count):
        delivery = await queue.receive(timeout=TIMEOUT)
        assert delivery is not None
        assert delivery.nbytes == trial.nbytes
        await queue.ack([delivery])
        meter.count()
    meter.stop()


@dataclass(frozen=True, slots=True)
class Backend:
    """A transport and its floor.

    Attributes:
        floor: makes the floor at a location.
        open_locations: makes the locations for one run; yields the transport's URL and the floor's location.
        one_process: whether producer and consumer must share a process.
        factor: how many times as many records to put, for a transport that is fast.
        producer_query: what to append to the producer's URL.
    """

    floor: Callable[[str], Floor]
    open_locations: Callable[[], Iterator[tuple[str, str]]]
    one_process: bool = False
    factor: int = 1
    producer_query: str = ""


def in_memory() -> Iterator[tuple[str, str]]:
    """Yield locations in memory."""
    yield "memory://benchmark?high_water=8GB", ""


def in_directories() -> Iterator[tuple[str, str]]:
    """Yield locations in a new directory."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "floor").mkdir()
        yield f"file://{directory}/queue?high_water=8GB", f"{directory}/floor"


def at_ports() -> Iterator[tuple[str, str]]:
    """Yield locations at free ports."""
    yield f"zmq://127.0.0.1:{free_port()}?high_water=8GB", f"tcp://127.0.0.1:{free_port()}"


def in_redis() -> Iterator[tuple[str, str]]:
    """Yield two databases of a new Redis server."""
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
    with subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL) as server:
        wait_for(port)
        yield f"redis://127.0.0.1:{port}/0?high_water=8GB", f"redis://127.0.0.1:{port}/1"
        server.terminate()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until a server listens at a port."""
    for _ in range(1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)


BACKENDS = {
    "memory": Backend(MemoryFloor, in_memory, one_process=True, factor=5),
    "file": Backend(FileFloor, in_directories),
    **({"zmq": Backend(ZmqFloor, at_ports, producer_query="&serve=false")} if find_spec("zmq") else {}),
    **({"redis": Backend(RedisFloor, in_redis)} if find_spec("redis") and shutil.which("redis-server") else {}),
}


def compare(name: str, nbytes: int, count: int, repeat: int) -> dict[str, float]:
    """Measure a transport and its floor; return their best figures and the ratios."""
    outcomes: dict[str, list[Outcome]] = {"transport": [], "floor": []}
    for _ in range(repeat):
        with contextmanager(BACKENDS[name].open_locations)() as places:
            for contender, where in zip(outcomes, places, strict=True):
                trial = Trial(where, nbytes, count * BACKENDS[name].factor)
                outcomes[contender].append(run(name, contender, trial))
    rate = {contender: max(outcome.rate for outcome in runs) for contender, runs in outcomes.items()}
    cpu = {contender: min(outcome.cpu for outcome in runs) for contender, runs in outcomes.items()}
    return {
        **rate,
        "ratio": rate["transport"] / rate["floor"],
        "transport_cpu_us": cpu["transport"],
        "floor_cpu_us": cpu["floor"],
        "cpu_ratio": cpu["floor"] / cpu["transport"],
    }


def measure_peer(name: str, nbytes: int, count: int, repeat: int) -> dict[str, float]:
    """Measure a peer; return its best rate."""
    trial = Trial("", nbytes, max(20, int(count * PEERS[name][1])))
    return {"peer": max(run(name, "peer", trial).rate for _ in range(repeat))}


def run(name: str, contender: str, trial: Trial) -> Outcome:
    """Run one trial, in new processes."""
    roles = ["both"] if contender == "peer" or BACKENDS[name].one_process else ["consume", "produce"]
    commands = [
        [sys.executable, __file__, "--role", json.dumps([name, contender, role, asdict(trial)])] for role in roles
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    sides = [Outcome(**json.loads(process.communicate(timeout=2 * TIMEOUT)[0])) for process in processes]
    return Outcome(rate=sides[0].rate, cpu=max(side.cpu for side in sides))


async def run_role(name: str, contender: str, role: str, trial: Trial) -> Outcome:
    """Run the producer, the consumer or both in this process."""
    where = trial.where + (BACKENDS[name].producer_query if role == "produce" else "")
    queue = open_queue(where) if contender == "transport" else BACKENDS[name].floor(trial.where)
    meter = Meter()
    async with queue:
        if role == "produce":
            await produce(queue, trial, meter)
        elif role == "consume":
            await consume(queue, trial, meter)
        else:
            await asyncio.gather(consume(queue, trial, meter), produce(queue, trial, Meter()))
    return meter.outcome()


def main() -> None:
    """Measure and print everything; with `--role`, be one of the processes that do so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=sorted(BACKENDS), action="append", help="measure only this transport")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the number of records by this")
    parser.add_argument("--repeat", type=int, default=3, help="how many runs, of which the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        name, contender, role, fields = json.loads(options.role)
        trial = Trial(**fields)
        outcome = PEERS[name][0](trial) if contender == "peer" else asyncio.run(run_role(name, contender, role, trial))
        print(json.dumps(asdict(outcome)))
        return
    results = {
        f"{name} {label}": measure(name, nbytes, max(20, int(count * options.scale)), options.repeat)
        for measure, names in ((compare, options.backend or BACKENDS), (measure_peer, () if options.backend else PEERS))
        for name in names
        for label, (nbytes, count) in SIZES.items()
    }
    if options.json:
        print(json.dumps(results))
        return
    print(f"{'':32}{'records/s':>12}{'floor/s':>12}{'ratio':>8}{'CPU us':>12}{'floor':>10}{'ratio':>8}")
    for name, rates in results.items():
        if "peer" in rates:
            print(f"{name:32}{rates['peer']:12,.0f}")
        else:
            in_time = f"{rates['transport']:12,.0f}{rates['floor']:12,.0f}{rates['ratio']:8.2f}"
            in_cpu = f"{rates['transport_cpu_us']:12,.1f}{rates['floor_cpu_us']:10,.1f}{rates['cpu_ratio']:8.2f}"
            print(f"{name:32}{in_time}{in_cpu}")


if __name__ == "__main__":
    main()
