"""Records that are missing, damaged, too many or from another program; images that cannot be read."""

import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rollout.records.endings import RolloutStatus
from rollout.trainer import ImagesUnreadable, ReaderSettings, SpillError, check, samples
from rollout.trainer.reading.image_access import MAX_UNREADABLE
from rollout.trainer.testing import checkpoint, put_all, read_all, scripted_rollout
from tests.unit.trainer.readers import SHORT_TIMEOUTS, backlog, read_groups, reader_of
from transports import Frames, Queue
from transports.codec import decode, encode
from transports.codec.limits import MAX_HEAD_BYTES


async def test_a_lost_step_fails_its_rollout_after_the_gap_timeout(queue: Queue) -> None:
    packets = await scripted_rollout()
    del packets[2]
    await put_all(queue, packets)
    async with reader_of(SHORT_TIMEOUTS) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error == {"type": "LostRecords", "message": "only 2 of 3 steps arrived"}
    assert len(trajectory.steps) == 1


async def test_a_silent_attempt_fails_its_rollout_after_the_unfinished_timeout(queue: Queue) -> None:
    await put_all(queue, (await scripted_rollout())[:3])
    async with reader_of(SHORT_TIMEOUTS) as reader:
        trajectory = await reader.receive(timeout=5)
        await checkpoint(reader)
    assert trajectory is not None
    assert trajectory.error == {"type": "Unfinished", "message": "no record arrived after 2 steps"}
    assert not samples(trajectory)
    assert await backlog(queue) == 0


async def test_a_gap_in_one_attempt_does_not_fail_a_rollout_while_another_attempt_runs(queue: Queue) -> None:
    first, second = await scripted_rollout(attempt=1), await scripted_rollout(attempt=2)
    await put_all(queue, [*first[:2], *first[3:], *second[:3]])
    async with reader_of(ReaderSettings(gap_timeout=0.01)) as reader:
        assert await read_all(reader, timeout=0.1) == []
        await put_all(queue, second[3:])
        (trajectory,) = await read_all(reader)
    assert trajectory.attempt == 2


@pytest.mark.parametrize("damaged", range(5))
@pytest.mark.parametrize("crashed", [False, True])
async def test_a_record_that_cannot_be_decoded_fails_its_rollout_and_the_group_completes(
    queue: Queue, damaged: int, crashed: bool
) -> None:
    bad = await scripted_rollout("g.0", group_size=2)
    bad[damaged] = bad[damaged]._replace(frames=(b"\xc1 not a record",))
    await put_all(queue, bad + await scripted_rollout("g.1", group_size=2))
    if crashed:
        async with reader_of() as reader:
            await read_all(reader)
    async with reader_of() as reader:
        group = await reader.receive_group(timeout=5)
        assert group is not None
        assert group.whole
        assert [trajectory.status.value for trajectory in group.trajectories] == ["failed", "ok"]
        assert (await queue.stats()).dead_letters == 0
        await checkpoint(reader)
        assert (await queue.stats()).dead_letters == 1
        assert await backlog(queue) == 0


def of_a_newer_major_version(frames: Frames) -> Frames:
    return encode({**decode(frames), "schema": 200})


def with_a_processed_payload(frames: Frames) -> Frames:
    wire = decode(frames)
    named, _, *where = wire["images"][0]
    return encode({**wire, "images": [[named, {"pixel_values": np.zeros(4, np.float32)}, *where]]})


def torn(frames: Frames) -> Frames:
    return (bytes(frames[0])[:-7],)


def oversized(frames: Frames) -> Frames:
    return (bytes(frames[0]) + bytes(MAX_HEAD_BYTES),)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (of_a_newer_major_version, r"schema 2\.00"),
        (with_a_processed_payload, "pixel_values"),
        (torn, "cannot be decoded"),
        (oversized, "the head has"),
    ],
)
async def test_a_damaged_record_is_a_dead_letter_with_its_reason(
    queue: Queue, damage: Callable[[Frames], Frames], reason: str
) -> None:
    packets = await scripted_rollout(turns=1, image_tokens=4)
    packets[1] = packets[1]._replace(frames=damage(packets[1].frames))
    await put_all(queue, packets)
    async with reader_of() as reader:
        (trajectory,) = await read_all(reader)
        await checkpoint(reader)
    assert (trajectory.status, samples(trajectory)) == (RolloutStatus.FAILED, [])
    (letter,) = await queue.dead_letters()
    assert letter.tag == packets[1].tag
    assert re.search(reason, letter.reason)


async def test_a_record_of_another_program_is_a_dead_letter_and_fails_no_rollout(queue: Queue) -> None:
    await queue.put((b"\xc1",), key="x", tag="of another program")
    await put_all(queue, await scripted_rollout())
    async with reader_of() as reader:
        assert len(await read_all(reader)) == 1
        await checkpoint(reader)
        assert reader.stats().rejected == 1
    assert await backlog(queue) == 0


async def test_a_replaced_step_fails_its_rollout(queue: Queue) -> None:
    packets, other = await scripted_rollout(), await scripted_rollout(turns=4)
    packets[2] = packets[2]._replace(frames=other[3].frames)
    await put_all(queue, packets)
    async with reader_of(SHORT_TIMEOUTS) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED


async def test_images_without_a_layout_in_the_start_record_fail_their_rollout(queue: Queue) -> None:
    packets = await scripted_rollout(image_tokens=4)
    wire = decode(packets[0].frames)
    packets[0] = packets[0]._replace(frames=encode({**wire, "layout": {}}))
    await put_all(queue, packets)
    async with reader_of() as reader:
        (trajectory,) = await read_all(reader)
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error is not None
    assert "the start record has no image layout" in trajectory.error["message"]


async def test_a_record_whose_tag_has_half_of_a_character_is_a_dead_letter(queue: Queue) -> None:
    await queue.put((b"\xc1",), key="g", tag="run/Scripted/\ud83d#1.0")
    async with reader_of() as reader:
        assert await read_all(reader) == []
        await checkpoint(reader)
    assert (await queue.stats()).dead_letters == 1


# Memory


async def test_steps_over_the_memory_limit_are_spilled_and_come_back_unchanged(queue: Queue) -> None:
    rollouts = [await scripted_rollout(f"{number}.0", turns=8) for number in range(12)]
    await put_all(queue, [packet for together in zip(*rollouts, strict=True) for packet in together])
    async with reader_of(ReaderSettings(memory_limit=50_000)) as reader:
        first = await reader.receive(timeout=5)
        assert first is not None
        stats = reader.stats()
        assert 0 < stats.bytes_in_memory <= 50_000
        assert stats.bytes_on_disk
        found = [first, *await read_all(reader)]
        assert reader.stats().bytes_on_disk == reader.stats().bytes_in_memory == 0
    assert len(found) == 12
    assert all(check(trajectory) == [] and trajectory.trainable for trajectory in found)


@pytest.mark.parametrize("tokens", [10, 2000])
async def test_the_counted_memory_is_that_of_unfinished_rollouts(queue: Queue, tokens: int) -> None:
    for number in range(20):
        packets = await scripted_rollout(
            f"{number}.0", turns=15, question_tokens=tokens, answer_tokens=tokens, image_tokens=64
        )
        await put_all(queue, packets[:-1])
    async with reader_of() as reader:
        tracemalloc.start()
        try:
            assert await read_all(reader) == []
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        # The queue keeps the frames, too, and the reader keeps what it needs to ack a record.
        assert 0.4 < taken / reader.stats().bytes_in_memory < 1.4


async def test_the_error_of_a_failed_spill_says_what_to_do(queue: Queue, tmp_path: Path) -> None:
    await put_all(queue, await scripted_rollout())
    settings = ReaderSettings(memory_limit=0, spill_directory=str(tmp_path / "missing"))
    async with reader_of(settings) as reader:
        with pytest.raises(
            SpillError,
            match=r"missing: .* cannot spill steps to this directory: No such file .* raise the memory_limit",
        ):
            await read_all(reader)


# Images


async def test_images_that_this_process_cannot_read_are_an_error_before_a_trajectory_is_returned(
    queue: Queue, tmp_path: Path
) -> None:
    await put_all(queue, await scripted_rollout(image_tokens=64, assets=str(tmp_path / "elsewhere")))
    async with reader_of() as reader:
        with pytest.raises(
            ImagesUnreadable, match=r"elsewhere/0+\.png: No such file or directory .the directory does not exist"
        ):
            await read_all(reader)
        await checkpoint(reader)
        assert await backlog(queue) == 5
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / f"{0:064x}.png").touch()
        (trajectory,) = await read_all(reader)
    assert check(trajectory) == []


IMAGE = f"{0:064x}.png"


def image_directory(directory: Path) -> str:
    directory.mkdir()
    (directory / IMAGE).touch()
    return str(directory)


def named_pipe(directory: Path) -> str:
    directory.mkdir()
    os.mkfifo(directory / IMAGE)
    return str(directory)


def link(directory: Path) -> str:
    directory.mkdir()
    (directory / IMAGE).symlink_to("/etc/passwd")
    return str(directory)


def pipe_as_directory(directory: Path) -> str:
    os.mkfifo(directory)
    return str(directory)


@pytest.mark.parametrize("make_bad", [str, named_pipe, link, pipe_as_directory])
async def test_a_record_with_bad_images_fails_only_its_rollout(
    queue: Queue, tmp_path: Path, make_bad: Callable[[Path], str]
) -> None:
    bad, good = make_bad(tmp_path / "bad"), image_directory(tmp_path / "good")
    for name, assets in (("a.0", bad), ("b.0", good), ("c.0", bad), ("d.0", good)):
        await put_all(queue, await scripted_rollout(name, turns=1, image_tokens=4, assets=assets))
    async with reader_of() as reader:
        found = {trajectory.rollout: trajectory for trajectory in await read_all(reader)}
        await checkpoint(reader)
    assert await backlog(queue) == 0
    assert {name for name, trajectory in found.items() if trajectory.trainable} == {"b.0", "d.0"}
    error = found["a.0"].error
    assert error is not None
    assert error["type"] == "ImagesUnreadable"
    assert "this process cannot read" in error["message"]


async def test_a_group_with_unreadable_images_waits_for_one_with_readable_images(queue: Queue, tmp_path: Path) -> None:
    for name, assets in (("a.0", "/missing"), ("b.0", image_directory(tmp_path / "good"))):
        await put_all(queue, await scripted_rollout(name, turns=1, image_tokens=4, assets=assets))
    async with reader_of() as reader:
        groups = await read_groups(reader)
    assert [(group.id, group.trajectories[0].status.value) for group in groups] == [("b", "ok"), ("a", "failed")]


async def test_a_missing_directory_of_many_rollouts_is_an_error(queue: Queue, tmp_path: Path) -> None:
    good = image_directory(tmp_path / "good")
    await put_all(queue, await scripted_rollout("good.0", turns=1, image_tokens=4, assets=good))
    for number in range(MAX_UNREADABLE + 1):
        await put_all(queue, await scripted_rollout(f"{number}.0", turns=1, image_tokens=4, assets="/missing"))
    async with reader_of() as reader:
        with pytest.raises(ImagesUnreadable, match="cannot read /missing"):
            await read_all(reader)
        assert reader.stats().trajectories == 1 + MAX_UNREADABLE


async def test_after_many_unreadable_images_no_more_records_are_read(queue: Queue) -> None:
    for number in range(2 * MAX_UNREADABLE):
        await put_all(queue, await scripted_rollout(f"{number}.0", turns=1, image_tokens=4, assets="/missing"))
    async with reader_of() as reader:
        with pytest.raises(ImagesUnreadable):
            await reader.receive(timeout=60)
        assert reader.stats().waiting == MAX_UNREADABLE
