"""Sends random and damaged messages to a zmq:// hub and to a handle: they are refused or understood, and it continues.

python tests/fuzz/fuzz_zmtp.py --count 20000 --seed 0
"""

import asyncio
import logging
import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from tests.fuzz.fuzzing import OperationLimit, fuzz
from tests.unit.transports.zmq_in_one_loop import OneLoopHub
from transports.errors import QueueError
from transports.zeromq.remote import RemoteHubLink

OPERATIONS = 5000
STRANGER, OTHER = b"5" * 16, b"6" * 16
HELLO, LEAVE = msgpack.packb(["record", None, 0]), msgpack.packb([9, "leave", []])
TOKEN = ["hub", 0, 0, 1]
NAME = "5" * 16 + "0" * 16 + "tag"
FRAMES = [b"one", b"", b"two"]

TO_HUB: list[tuple[bytes, list[Any], list[bytes]]] = [
    (b"H2", ["record", None, 0], []),
    (b"H2", ["partition", [0, 1], 3], []),
    (b"P", [0, "key", "tag"], FRAMES),
    (b"B", [STRANGER], []),
    *(
        (b"Q", [4, operation, arguments], [])
        for operation, arguments in [
            ("take", [0.5]),
            ("ack", [[TOKEN, TOKEN]]),
            ("nack", [TOKEN, 0.1]),
            ("reject", [TOKEN, "reason"]),
            ("stats", []),
            ("dead_letters", [10]),
            ("discard", ["id"]),
            ("peek", [10]),
            ("release", []),
        ]
    ),
]
TO_HANDLE: list[tuple[bytes, list[Any], list[bytes]]] = [
    (b"W", ["hub", 2, 0], []),
    (b"S", [0, [0, 1, 2]], []),
    (b"A", [0, "", [TOKEN, "key", NAME, False]], FRAMES),
    (b"A", [1, "", [0, 0, 0.0, 0, 0, 0, 0]], []),
    (b"A", [2, "", [["id", 2, "key", "tag", "why"], ["id", 1, "key", "tag", "why"]]], FRAMES),
    (b"A", [3, "", [[3, "key", "tag", 0, 5, True]]], FRAMES),
    (b"A", [4, "", [TOKEN]], []),
    (b"A", [0, "problem", None], []),
    (b"V", [], []),
]
ODD_VALUES = [
    *(None, True, -1, 0, 1, 4096, 2**62, 2**63 - 1, 2**64 - 1, 0.5, math.nan, math.inf, -math.inf, 1e300),
    *("", "x", "\ud800", "5" * 16, "0x" + "1" * 14, "9" * 5000, b"", b"\xff", STRANGER, [], [[]], {}, {"a": 1}, TOKEN),
    msgpack.ExtType(3, b"x"),
    msgpack.Timestamp(1),
]


class Case(NamedTuple):
    to_hub: bool
    parts: list[bytes]


def make(chance: random.Random) -> Case:
    to_hub = chance.random() < 0.6
    if chance.random() < 0.05:
        return Case(to_hub, [chance.randbytes(chance.randint(0, 60)) for _ in range(chance.randint(0, 5))])
    kind, values, frames = chance.choice(TO_HUB if to_hub else TO_HANDLE)
    if kind == b"V":
        return Case(to_hub, [kind, chance.choice([b"2", b"1", b"3", b"9999", b"99999", b"", b"x", b"-1"])])
    if kind.startswith(b"H") and chance.random() < 0.3:
        kind = b"H" + chance.choice([b"", b"1", b"3", b"9999", b"99999", b"x", b"\xff"])
    damage = chance.random()
    if damage < 0.5:
        values = damage_value(chance, values)
    header: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    if damage > 0.7:
        header = damage_bytes(chance, header)
    parts = [kind, header, *frames]
    if chance.random() < 0.2:
        at = chance.randrange(len(parts))
        parts[at : at + chance.randint(0, 2)] = [chance.randbytes(2)] * chance.randint(0, 2)
    return Case(to_hub, parts)


def damage_value(chance: random.Random, value: Any) -> Any:
    """Return the value with one part changed, added or left out."""
    if not isinstance(value, list) or not value or chance.random() < 0.1:
        return chance.choice(ODD_VALUES)
    at, choice = chance.randrange(len(value)), chance.random()
    if choice < 0.7:
        return [*value[:at], damage_value(chance, value[at]), *value[at + 1 :]]
    return [*value[:at], *([chance.choice(ODD_VALUES)] if choice < 0.85 else []), *value[at + (choice >= 0.85) :]]


def damage_bytes(chance: random.Random, header: bytes) -> bytes:
    damaged = bytearray(header)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged) + 1)
        odd = [b"", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1", b"\x91" * 2000]
        damaged[at : at + chance.randint(0, 3)] = chance.choice([*odd, chance.randbytes(1)])
    return bytes(damaged)


class World:
    """A hub with a good handle. All cases share it, so damage by one message shows in the next cases."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.unexpected: list[BaseException] = []
        self.loop.set_exception_handler(lambda _, context: self.unexpected.append(context["exception"]))
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        self.hub = OneLoopHub(partitions=2)
        self.good_handle = self.hub.link()
        await self.good_handle.wait_until_ready(10)

    async def attempt_to_hub(self, parts: list[bytes]) -> str:
        """Send a message to the hub from a stranger; a hello comes first, unless the message is one."""
        before = self.hub.refusals.count
        if not (parts and parts[0].startswith(b"H")):
            self.hub.receive(STRANGER, b"H2", HELLO)
        with OperationLimit(OPERATIONS):
            self.hub.receive(STRANGER, *parts)
        refused = self.hub.refusals.count > before
        await asyncio.sleep(0)
        self.hub.receive(STRANGER, b"Q", LEAVE)  # return what it took
        await self._put_and_receive(self.good_handle)
        self.hub.sent.clear()
        return f"hub: {'refused' if refused else 'understood'}"

    async def attempt_to_handle(self, parts: list[bytes]) -> str:
        """Send a message from the hub to a handle that waits for five answers."""
        link = self.hub.link(OTHER)
        await link.wait_until_ready(10)
        calls = (link.receive(0.0), link.stats(), link.dead_letters(1), link.peek(1), link.ack([]))
        with self.hub.silence():
            waiting = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with OperationLimit(OPERATIONS):
                link.handle_message(parts, "10.0.0.1")
        if refused := bool(link.refused_messages):
            await asyncio.gather(*waiting)
            await self._put_and_receive(link)
        for task in waiting:
            task.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await link.close()
        self.hub.receive(OTHER, b"Q", LEAVE)
        if (error := next((o for o in outcomes if isinstance(o, Exception)), None)) is not None:
            raise error
        return f"handle: {'refused' if refused else 'understood'}"

    async def _put_and_receive(self, link: RemoteHubLink) -> None:
        await link.put((b"good",), "key", "good")
        tag = ""
        while tag != "good":
            leased = await link.receive(10)
            assert leased is not None, "the queue does not deliver the good record"
            await link.ack([leased.token])
            tag = leased.tag


world: World


def attempt(case: Case) -> str:
    done = world.attempt_to_hub(case.parts) if case.to_hub else world.attempt_to_handle(case.parts)
    try:
        return world.loop.run_until_complete(done)
    finally:
        if world.unexpected:
            raise world.unexpected.pop()


@contextmanager
def one_world() -> Iterator[None]:
    global world
    logging.disable()
    world = World()
    yield


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(QueueError,), operations=None, around=one_world))
