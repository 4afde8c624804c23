"""`file://`: the conformance suite, damage, full disks, dead holders and acked segments."""

import asyncio
import contextlib
import logging
import math
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transports import Delivery, Queue, QueueCorrupt, QueueStorageError, QueueURLError, StaleLease, open_queue
from transports.files.records import PutTotals, pack_header, pack_record
from transports.testing import QueueConformance
from transports.testing.cases import number_in, receive_one


class TestFileConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/queue"


class TestFileConformanceWithEverySync(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/queue?fsync=always&segment_bytes=200"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def segments(root: Path) -> list[Path]:
    return sorted(root.glob("p*/*.seg"), key=lambda path: (path.stat().st_mtime_ns, path.name))


async def put_numbers(root: Path, numbers: range, options: str = "") -> None:
    async with open_queue(f"file://{root}?{options}".rstrip("?")) as queue:
        for number in numbers:
            await queue.put((str(number).encode(), bytes(100)), key="k", tag=f"record {number}")


async def drain(queue: Queue, timeout: float = 0.1) -> list[int]:
    """Receive and ack records until none comes; return their numbers."""
    numbers = []
    while (delivery := await queue.receive(timeout=timeout)) is not None:
        numbers.append(number_in(delivery))
        await delivery.ack()
    return numbers


# Damage


@pytest.mark.parametrize("cut", [1, 8, 40, 150])
async def test_an_incomplete_record_at_the_end_is_removed_and_reported(
    root: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_queue(f"file://{root}")
    for n in range(3):
        await writer.put((str(n).encode(), bytes(100)), key="k")
    (torn,) = segments(root)
    os.truncate(torn, torn.stat().st_size - cut)
    async with open_queue(f"file://{root}?lease_time=0.05") as queue:
        with caplog.at_level(logging.WARNING, "transports"):
            assert await drain(queue) == [0, 1]
        assert (await queue.stats()).backlog_records == 0
    assert "torn tail" in caplog.text
    assert torn.name in caplog.text
    await writer.aclose()


async def test_zeros_after_a_power_loss_are_not_a_record(root: Path) -> None:
    writer = open_queue(f"file://{root}")
    await writer.put((b"0",), key="k")
    (segment,) = segments(root)
    with segment.open("ab") as file:
        file.write(bytes(5000))
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == [0]
        assert (await queue.stats()).backlog_records == 0
    await writer.aclose()


async def test_a_half_written_record_is_returned_when_it_is_complete(root: Path) -> None:
    await put_numbers(root, range(2))
    (segment,) = segments(root)
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-90])
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == [0]
        segment.write_bytes(whole)
        assert await drain(queue) == [1]


async def test_damage_before_later_records_is_corruption(root: Path) -> None:
    await put_numbers(root, range(3), "segment_bytes=1")
    damaged = segments(root)[1]
    content = bytearray(damaged.read_bytes())
    content[-50] ^= 1
    damaged.write_bytes(content)
    async with open_queue(f"file://{root}?lease_time=0.05") as queue:
        assert number_in(await receive_one(queue)) == 0
        with pytest.raises(QueueCorrupt, match=damaged.name):
            await drain(queue, timeout=5)


async def test_a_missing_segment_is_corruption(root: Path) -> None:
    await put_numbers(root, range(3), "segment_bytes=1")
    segments(root)[0].unlink()
    async with open_queue(f"file://{root}") as queue:
        with pytest.raises(QueueCorrupt, match="record 0 "):
            await queue.receive(timeout=5)


# The disk


@contextmanager
def files_limited_to(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_put_on_a_full_disk_leaves_nothing_and_a_smaller_one_succeeds(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        await queue.put((b"0", bytes(3000)), key="k")
        with files_limited_to(5000):
            with pytest.raises(QueueStorageError, match="not accepted"):
                await queue.put((b"1", bytes(3000)), key="k")
            await queue.put((b"2", bytes(100)), key="k")
        await queue.put((b"3", bytes(3000)), key="k")
        assert await drain(queue) == [0, 2, 3]


async def test_acks_on_a_full_disk_fail_and_can_be_repeated(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        for n in range(200):
            await queue.put((str(n).encode(),), key="k")
        leased = [await receive_one(queue) for _ in range(200)]
        with files_limited_to(4000), pytest.raises(QueueStorageError, match="acks"):
            await queue.ack(leased)
        await queue.ack(leased)
        assert (await queue.stats()).backlog_records == 0


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QueueStorageError, match="file"):
        open_queue(f"file://{tmp_path}/file/queue")


@pytest.mark.parametrize("url", ["file://relative/queue", "file:///", "file://host/dir"])
def test_only_an_absolute_local_directory_is_a_queue(url: str) -> None:
    with pytest.raises(QueueURLError, match="absolute"):
        open_queue(url)


# Segments


async def test_acked_segments_are_deleted(root: Path) -> None:
    await put_numbers(root, range(20), "segment_bytes=300")
    assert len(segments(root)) > 5
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == list(range(20))
    assert segments(root) == []
    await put_numbers(root, range(20, 22))
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == [20, 21]
        assert (await queue.stats()).backlog_records == 0


async def test_a_segment_with_an_unacked_record_stays(root: Path) -> None:
    await put_numbers(root, range(4), "segment_bytes=1")
    async with open_queue(f"file://{root}") as queue:
        leased = [await receive_one(queue) for _ in range(4)]
        await queue.ack([*leased[:1], *leased[2:]])
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == [1]


async def test_a_handle_without_the_option_does_not_delete_an_archive(root: Path) -> None:
    async with open_queue(f"file://{root}?retain=true") as queue:
        await queue.put((b"kept",), key="k")
    async with open_queue(f"file://{root}") as plain:
        delivery = await receive_one(plain)
        await delivery.ack()
        assert await plain.receive(timeout=0) is None
    async with open_queue(f"file://{root}?replay=true") as again:
        replayed = await again.receive(timeout=0)
    assert replayed is not None
    assert bytes(replayed.frames[0]) == b"kept"


async def test_a_retained_run_can_be_replayed_repeatedly(root: Path) -> None:
    await put_numbers(root, range(6), "partitions=2&segment_bytes=300")
    await put_numbers(root, range(6, 10))
    async with open_queue(f"file://{root}?retain=true") as queue:
        assert sorted(await drain(queue)) == list(range(10))
    for _ in range(2):
        async with open_queue(f"file://{root}?replay=true") as queue:
            assert await drain(queue) == list(range(10))
            assert await queue.receive(timeout=0) is None


async def test_large_records_that_are_put_together_are_received(root: Path) -> None:
    blob = os.urandom(5 << 20)
    async with open_queue(f"file://{root}") as queue:
        await asyncio.gather(*(queue.put((str(n).encode(), blob), key="k") for n in range(4)))
        for _ in range(4):
            delivery = await receive_one(queue)
            assert bytes(delivery.frames[1]) == blob
            await delivery.ack()


async def test_a_record_with_many_frames_is_received(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        await queue.put(tuple(str(n).encode() for n in range(1500)), key="k")
        delivery = await receive_one(queue)
        assert [bytes(frame) for frame in delivery.frames] == [str(n).encode() for n in range(1500)]


# Leases


async def test_the_partitions_of_a_holder_without_a_heartbeat_go_to_another(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_numbers(root, range(3))
    frozen = open_queue(f"file://{root}?lease_time=0.05")
    monkeypatch.setattr("transports.files.leases.LeaseHolder._keep_heartbeat", lambda self: None)
    leased = await receive_one(frozen)
    assert number_in(leased) == 0
    async with open_queue(f"file://{root}?lease_time=0.05") as other:
        taken = await receive_one(other)
        assert (number_in(taken), taken.redelivered) == (0, True)
        with pytest.raises(StaleLease):
            await leased.ack()
        await taken.ack()
        assert await drain(other) == [1, 2]
    await frozen.aclose()


async def test_a_claim_of_a_holder_without_a_heartbeat_goes_to_another(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_numbers(root, range(2))
    frozen = open_queue(f"file://{root}?lease_time=0.05", lease="record")
    monkeypatch.setattr("transports.files.leases.LeaseHolder._keep_heartbeat", lambda self: None)
    leased = await receive_one(frozen)
    async with open_queue(f"file://{root}", lease="record") as other:
        got = [await receive_one(other), await receive_one(other)]
        assert sorted(map(number_in, got)) == [0, 1]
        with pytest.raises(StaleLease):
            await leased.ack()
        await other.ack(got)
        assert (await other.stats()).backlog_records == 0
    await frozen.aclose()


async def test_a_long_log_of_acks_is_replaced_by_a_short_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.files.acks._COMPACT_BYTES", 500)
    writer = open_queue(f"file://{root}?segment_bytes=1")
    async with writer, open_queue(f"file://{root}") as queue, open_queue(f"file://{root}") as peeking:
        unacked: list[Delivery] = []
        for n in range(400):
            await writer.put((str(n).encode(), bytes(100)), key="k")
            delivery = await receive_one(queue)
            assert number_in(delivery) == n
            if n < 2:
                unacked.append(delivery)
            else:
                await delivery.ack()
            if n == 40:
                await queue.ack(unacked[::-1])
                unacked = []
            assert (await peeking.stats()).backlog_records == len(unacked)
            # A log that is too long is replaced when no record is left to read.
            assert await queue.receive(timeout=0) is None
            assert ledger_bytes(root) <= longest_ledger(acked_out_of_order=38 if n < 150 else 0)
        for n in range(400, 410):
            await writer.put((str(n).encode(), bytes(100)), key="k")
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == list(range(400, 410))


def longest_ledger(*, acked_out_of_order: int) -> int:
    """Return the largest size of a log, which begins with three entries and one for each ack out of order."""
    opening_bytes = 32 * (3 + acked_out_of_order)
    return 500 + 2 * opening_bytes


def ledger_bytes(root: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # a log was removed while it was counted
        return sum(path.stat().st_size for path in root.glob("p0/acks.*"))
    return ledger_bytes(root)


# Files that another program put into the directory


def write_segment(path: Path, *, key: bytes = b"k", frames: tuple[bytes, ...] = (b"0",), put_at: float = 1e9) -> None:
    buffers, _, _ = pack_record(0, put_at, key, b"", frames, PutTotals(0, 0))
    path.write_bytes(b"".join([pack_header(PutTotals(0, 0)), *buffers]))


FOREIGN = f"{'a' * 16}.{0:016x}.seg"


@pytest.mark.parametrize("replay", ["", "?replay=true"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
async def test_a_segment_that_is_not_a_regular_file_is_an_error(
    make: Callable[[Path], None], replay: str, root: Path
) -> None:
    await put_numbers(root, range(1))
    make(root / "p0" / FOREIGN)
    async with open_queue(f"file://{root}{replay}") as queue:
        with pytest.raises(QueueStorageError):
            await queue.stats()


async def test_a_partition_that_is_not_a_directory_is_named(root: Path) -> None:
    await put_numbers(root, range(1))
    shutil.rmtree(root / "p0")
    (root / "p0").touch()
    with pytest.raises(QueueStorageError, match="p0"):
        open_queue(f"file://{root}?replay=true")


@pytest.mark.parametrize("put_at", [math.nan, math.inf, -math.inf, -1e300, 1e300])
async def test_a_record_with_an_impossible_time_has_no_age(put_at: float, root: Path) -> None:
    await put_numbers(root, range(1))
    write_segment(root / "p0" / FOREIGN, put_at=put_at)
    async with open_queue(f"file://{root}") as queue:
        stats = await queue.stats()
    assert stats.backlog_records == 2
    assert stats.oldest_age < 1000


async def test_a_record_with_a_damaged_key_is_not_returned(root: Path) -> None:
    await put_numbers(root, range(2))
    write_segment(root / "p0" / FOREIGN, key=b"\xff")
    async with open_queue(f"file://{root}") as queue:
        assert await drain(queue) == [0, 1]


async def test_a_dead_letter_with_a_damaged_reason_can_be_seen(root: Path) -> None:
    await put_numbers(root, range(1))
    write_segment(root / "p0" / "dead" / FOREIGN, frames=(b"\xffwhy", b"x"))
    async with open_queue(f"file://{root}") as queue:
        assert [letter.reason for letter in await queue.dead_letters()] == ["\ufffdwhy"]
