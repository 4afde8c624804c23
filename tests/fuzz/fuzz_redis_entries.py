"""Consumes random and damaged entries of a Redis stream: each becomes a record or a dead letter, never an error.

There is no server: a double answers as XREADGROUP and the scripts do.

python tests/fuzz/fuzz_redis_entries.py --count 20000 --seed 0
"""

import asyncio
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tests.fuzz.fuzzing import fuzz
from transports.base import Queue
from transports.memory import MemoryQueue
from transports.redis_streams import scripts
from transports.redis_streams.consumers import StreamPartitionConsumer, StreamSettings, StreamSingleRecordConsumer
from transports.redis_streams.entries import RawFields, join_frames, read_dead_letter

if TYPE_CHECKING:
    from transports.redis_streams.server import RedisClient

GOOD_ID = b"1700000000001-0"
GOOD_FIELDS = {b"k": b"key", b"t": b"tag", b"d": join_frames((b"good", b""))}
ODD_IDS = [b"0-0", b"1-1048576", b"8796093022208-0", b"18446744073709551615-18446744073709551615", b"", b"x-1", b"1"]
ODD_DATA = [
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\xff\xff\xff\xff" + b"\x00" * 40,
    b"\x00" * 4,
    b"\x01\x00\x00\x00\xff\xff\xff\xff",
]


class Entry(NamedTuple):
    id: bytes
    fields: dict[bytes, bytes] | None
    shared: bool
    """Whether its consumer takes single records."""


def make(chance: random.Random) -> Entry:
    id_ = chance.choice(ODD_IDS) if chance.random() < 0.15 else b"1700000000000-%d" % chance.randrange(1 << 20)
    shared = chance.random() < 0.5
    if chance.random() < 0.05:
        return Entry(id_, chance.choice([None, {}]), shared)
    fields = {b"k": b"key", b"t": "täg".encode(), b"d": make_data(chance)}
    if chance.random() < 0.3:
        fields[b"r"] = chance.choice([b"reason", b"\xff"])
    for _ in range(chance.choice([0, 0, 1, 2])):
        fields[chance.choice([b"k", b"t", b"d", b"garbage", chance.randbytes(2)])] = chance.randbytes(
            chance.randint(0, 6)
        )
    if chance.random() < 0.2:
        del fields[chance.choice(list(fields))]
    return Entry(id_, fields, shared)


def make_data(chance: random.Random) -> bytes:
    if chance.random() < 0.15:
        return chance.choice(ODD_DATA)
    data = bytearray(join_frames(tuple(chance.randbytes(chance.randint(0, 30)) for _ in range(chance.randint(1, 4)))))
    if chance.random() < 0.4:
        at = chance.randrange(len(data))
        data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(data)


class OneEntryServer:
    """Has an odd entry and a good one, and keeps what becomes a dead letter."""

    def __init__(self, odd: Entry) -> None:
        self.entries: list[tuple[bytes, RawFields]] = [(odd.id, odd.fields), (GOOD_ID, GOOD_FIELDS)]
        self.dead_letters: list[tuple[bytes, dict[bytes, bytes]]] = []

    async def read_group(self, *_: object) -> list[tuple[bytes, RawFields]]:
        entries, self.entries = self.entries, []
        return [(id_, fields or {}) for id_, fields in entries]

    async def run(self, script: str, keys: list[str], args: list[Any]) -> Any:
        if script == scripts.LEASE_PARTITION:
            return 1, b"0-0"
        if script == scripts.TAKE_RECORD:
            if not self.entries:
                return []
            id_, fields = self.entries.pop(0)
            return [[id_, 0, as_script_answers(fields)]]
        if script == scripts.COUNT_REDELIVERIES:  # of the id 0-0
            return 1
        assert script == scripts.REJECT_FOREIGN_ENTRY, script
        names = (b"r", b"k", b"t", b"d")
        values = [value.encode() if isinstance(value, str) else value for value in args[2:]]
        self.dead_letters.append((args[1], dict(zip(names, values, strict=True))))
        return 1


def as_script_answers(fields: RawFields) -> list[bytes] | None:
    return None if fields is None else [part for field in dict(cast(Any, fields)).items() for part in field]


def attempt(entry: Entry) -> str:
    return loop.run_until_complete(consume(entry))


async def consume(entry: Entry) -> str:
    server = OneEntryServer(entry)
    settings = StreamSettings(queue, cast("RedisClient", server), "{fuzz}", "holder", 1000)
    consumer = (StreamSingleRecordConsumer if entry.shared else StreamPartitionConsumer)(settings, 0)
    deliveries = []
    while (delivery := await consumer.next_delivery()) is not None:
        deliveries.append(delivery)
    assert bytes(deliveries[-1].frames[0]) == b"good", "the queue does not deliver the good entry"
    as_letter = read_dead_letter(entry.id, as_script_answers(entry.fields))
    assert as_letter.frames
    for id_, fields in server.dead_letters:
        letter = read_dead_letter(id_, fields)
        assert letter.tag == f"foreign entry {entry.id.decode('utf-8', 'replace')}"
        assert letter.reason.startswith("this entry is not a record of this queue: ")
        return "a dead letter"
    return "a record" if len(deliveries) == 2 else "nothing: deleted"


loop: asyncio.AbstractEventLoop
queue: Queue


@contextmanager
def one_loop() -> Iterator[None]:
    global loop, queue
    logging.disable()
    loop = asyncio.new_event_loop()
    queue = MemoryQueue("memory://fuzz", lease="partition", consume=None)
    yield


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(), around=one_loop))
