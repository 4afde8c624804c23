"""Files of a queue that are damaged by a full disk, a power loss or another program."""

import errno
import json
import os
import struct
from pathlib import Path

import pytest

from transports import Lease, QueueCorrupt, QueueStorageError, open_queue
from transports.files.leases import HeartbeatWatcher, LeaseHolder
from transports.files.records import HEADER_BYTES, stored_length
from transports.testing.cases import receive_one

HOLDER = "0123456789abcdef"
DAMAGED_HEARTBEATS = [
    b"",
    bytes(32),
    b"\xff" * 32,
    struct.pack("<16sQd", HOLDER.encode(), 1, 1e3)[:-1],
    struct.pack("<16sQd", HOLDER.encode(), 1, 1e3) + b"x",
    struct.pack("<16sQd", HOLDER.encode(), 1, float("nan")),
    struct.pack("<16sQd", HOLDER.encode(), 1, -1.0),
    struct.pack("<16sQd", b"../queue.json\0\0\0", 1, 0.0),
]


@pytest.mark.parametrize("lease", ["partition", "record"])
@pytest.mark.parametrize("refused", ["holders/", "p0/draft."])
async def test_a_full_disk_creates_no_lease_and_the_record_can_be_received_later(
    tmp_path: Path, lease: Lease, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def refuse(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{tmp_path}/{refused}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    async with open_queue(f"file://{tmp_path}", lease=lease) as queue:
        await queue.put((b"record",), key="k")
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(QueueStorageError, match="No space left on device"):
            await queue.receive(timeout=5)
        monkeypatch.setattr(os, "pwrite", write)
        assert all(file.stat().st_size for file in (tmp_path / "holders").iterdir())
        delivery = await receive_one(queue)
        await delivery.ack()


@pytest.mark.parametrize("content", DAMAGED_HEARTBEATS)
async def test_the_leases_of_a_dead_holder_expire_although_its_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    lease_file = tmp_path / "p0" / "lease.0"
    async with open_queue(f"file://{tmp_path}?lease_time=600") as queue:
        await queue.put((b"record",), key="k")
        (tmp_path / "holders" / HOLDER).write_bytes(content)
        os.link(tmp_path / "holders" / HOLDER, lease_file)
        assert await queue.receive(timeout=0) is None
        await queue.expire_leases(HOLDER)
        assert await queue.receive(timeout=5) is not None


@pytest.mark.parametrize("lease", ["partition", "record"])
@pytest.mark.parametrize("content", DAMAGED_HEARTBEATS)
async def test_a_damaged_lease_without_a_heartbeat_goes_to_another_consumer(
    tmp_path: Path, lease: Lease, content: bytes
) -> None:
    async with open_queue(f"file://{tmp_path}?lease_time=0.01", lease=lease) as queue:
        await queue.put((b"record",), key="k")
        segment = next((tmp_path / "p0").glob("*.seg")).name.split(".")[0]
        (tmp_path / "p0" / ("lease.0" if lease == "partition" else f"claims/{segment}.0.0")).write_bytes(content)
        delivery = await receive_one(queue)
        await delivery.ack()
    assert (tmp_path / "queue.json").exists()


def test_a_living_holder_keeps_a_damaged_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("transports.files.leases.time.monotonic", lambda: now)
    monkeypatch.setattr(LeaseHolder, "_keep_heartbeat", lambda self: None)
    holder, watcher = LeaseHolder(tmp_path, 10.0), HeartbeatWatcher(tmp_path, 10.0)
    lease_file = tmp_path / "lease.0"
    holder.create_lease(lease_file)
    (tmp_path / holder.name).write_bytes(b"")
    assert not watcher.has_expired(lease_file)
    now = 109.0
    assert not watcher.has_expired(lease_file)
    holder._write_heartbeat(holder._fd)
    now = 111.0
    assert not watcher.has_expired(lease_file)
    holder.close()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"[" * 4000,
        b"7",
        *(
            json.dumps({"format": 1, "partitions": partitions, "retain": False}).encode()
            for partitions in (float("inf"), 0, -1, 10**15, 1.5, True, "2", None)
        ),
        json.dumps({"format": 1, "partitions": 1, "retain": "no"}).encode(),
    ],
)
def test_a_damaged_queue_json_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "queue.json").write_bytes(content)
    with pytest.raises(QueueCorrupt, match=r"queue\.json does not describe a queue.*Correct it"):
        open_queue(f"file://{tmp_path}")


def test_a_full_disk_creates_no_queue_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(QueueStorageError, match="No space left on device"):
        open_queue(f"file://{tmp_path}/queue")
    assert not list((tmp_path / "queue").glob("queue.json*"))


async def test_a_record_that_is_cut_off_after_it_was_read_is_corruption(tmp_path: Path) -> None:
    async with open_queue(f"file://{tmp_path}") as queue:
        await queue.put((b"record",), key="k")
        delivery = await receive_one(queue)
        os.truncate(next((tmp_path / "p0").glob("*.seg")), HEADER_BYTES + 5)
        await delivery.nack(0)
        with pytest.raises(QueueCorrupt, match="the record was damaged after it was first read"):
            await queue.receive(timeout=5)


def test_the_length_of_a_record_whose_start_is_cut_off_is_not_known() -> None:
    assert stored_length(b"") == stored_length(bytes(5)) == 0
