"""Producers and consumers that the tests kill. One process forks them all, so that a new one starts in milliseconds.

It reads JSON commands from its standard input, `{"role", "url", "name", "log"}`, and answers each with a process id.
A peer logs what it did with one `write` for each line, so SIGKILL loses no line.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

from transports import Delivery, QueueError, StaleLease, open_queue

PAYLOAD = os.urandom(8 << 10)
ACK_EVERY = 16


async def produce(url: str, name: str, log: int) -> None:
    """Put numbered records, and log each number that was accepted."""
    number = 0
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with open_queue(url) as queue:
        while not ended.is_set():
            try:
                await queue.admit(timeout=60)
                await queue.put((f"{name} {number}".encode(), PAYLOAD), key=f"{name}.{number % 3}")
            except QueueError:  # the server was killed; the record may have been accepted or not
                await asyncio.sleep(0.01)
            else:
                os.write(log, f"{number}\n".encode())
            number += 1
        # The producer of a zmq queue holds its records in memory, so it must live until they are acked.
        while (await queue.stats()).backlog_records:  # noqa: ASYNC110 - another process acks them
            await asyncio.sleep(0.02)


async def consume(url: str, log: int, seen: set[str]) -> None:
    """Act as a trainer does: drop records that are saved already, save new ones, and then ack."""
    leased: list[Delivery] = []
    async with open_queue(url) as queue:
        while True:
            try:
                delivery = await queue.receive(timeout=0.1)
                if delivery is not None:
                    record = bytes(delivery.frames[0]).decode()
                    if record not in seen:
                        seen.add(record)
                        os.write(log, f"{record}\n".encode())
                    if delivery.redelivered:
                        os.write(log, b"redelivered\n")
                    leased.append(delivery)
                if delivery is None or len(leased) == ACK_EVERY:
                    settled, leased = leased, []
                    await queue.ack(settled)
            except StaleLease:
                continue
            except QueueError:
                await asyncio.sleep(0.01)


def run_peer(command: dict[str, str]) -> None:
    path = Path(command["log"])
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if command["role"] == "produce":
        asyncio.run(produce(command["url"], command["name"], log))
    else:
        asyncio.run(consume(command["url"], log, set(path.read_text().splitlines())))


def main() -> None:
    with contextlib.suppress(ImportError):
        import_module("transports.redis_streams.queue")  # imported once, before the forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the peers that were killed
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                run_peer(json.loads(line))
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
