"""Producers and consumers to be killed. One warm process forks each of them, so that a new one costs milliseconds.

Reads JSON commands from its standard input, `{"role", "url", "name", "log"}`, and answers each with a process id. What
a peer has done is in its log, one `write` a line, so that SIGKILL loses no line.
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
    """Put numbered records; a number in the log was accepted."""
    number = 0
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with open_queue(url) as queue:
        while not ended.is_set():
            try:
                await queue.admit(timeout=60)
                await queue.put((f"{name} {number}".encode(), PAYLOAD), key=f"{name}.{number % 3}")
            except QueueError:  # the server was killed under it; whether that record was accepted is not known
                await asyncio.sleep(0.01)
            else:
                os.write(log, f"{number}\n".encode())
            number += 1
        # A queue in memory has these records for as long as their producer lives.
        while (await queue.stats()).backlog_records:  # noqa: ASYNC110 - another process acks them
            await asyncio.sleep(0.02)


async def consume(url: str, log: int, seen: set[str]) -> None:
    """What a trainer does: drop what the saved state has, save what is new, and only then ack."""
    lent: list[Delivery] = []
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
                    lent.append(delivery)
                if delivery is None or len(lent) == ACK_EVERY:
                    settled, lent = lent, []
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
        import_module("transports.redis_streams.queue")  # once here, not in each peer
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps those that are killed
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
