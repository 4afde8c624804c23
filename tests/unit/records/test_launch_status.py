"""The status of a launch crosses the queue to every partition, and a damaged one is refused."""

from dataclasses import replace
from typing import Any

import pytest

from rollout.records.announcing import put_in_every_partition
from rollout.records.kinds import RecordError, header_from_tag
from rollout.records.wire import decode_queue_record, decode_record, encode_status
from tests.unit.records.golden.records import STATUS
from transports import open_queue
from transports.codec import decode, encode


async def test_a_status_is_put_in_every_partition() -> None:
    async with open_queue("memory://statuses?partitions=5") as queue:
        await put_in_every_partition(queue, STATUS)
        peeked = await queue.peek(limit=10)
    assert [record.partition for record in peeked] == [0, 1, 2, 3, 4]
    assert [decode_queue_record(record.frames) for record in peeked] == [
        replace(STATUS, partition=partition, partitions=5) for partition in range(5)
    ]


def test_a_status_is_not_a_record_of_a_rollout() -> None:
    assert header_from_tag(STATUS.tag, "launch-0") is None
    with pytest.raises(RecordError, match="launch 2 stopped: the record is the status of a launch"):
        decode_record(encode_status(STATUS))


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"phase": "asleep"}, "'asleep' is not a valid LaunchPhase"),
        ({"launch": 0}, "'launch' is 0"),
        ({"partition": 4}, "'partition' is 4"),
        ({"partitions": 0}, "'partitions' is 0"),
        ({"directory": "x" * 100_000}, "too long"),
        ({"host": None}, "'host'"),
    ],
)
def test_a_damaged_status_is_refused(changes: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(RecordError, match=expected_text):
        decode_queue_record(encode({**decode(encode_status(STATUS)), **changes}))
