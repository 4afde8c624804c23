"""The batches of a single rank, without torch.distributed: steps, states, commits, several queues, and the end."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout.records.endings import RolloutLimit
from rollout.records.launch_status import LaunchPhase
from rollout.trainer import (
    NothingArrived,
    ReaderSettings,
    ReaderStateError,
    ReadingStalled,
    SampleTooLong,
    TrajectoryReader,
    open_batches,
)
from rollout.trainer.batches.advantages import Rewards
from rollout.trainer.testing import put_all, put_status, scripted_rollout
from tests.needs.torch.ranks.launching import fill, stats_of
from transports import open_queue

RECORDS = 2 * 3
"""The records of a group: two members with a start, a step and an end."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/trajectories?retain=true&lease_time=600"


def groups_of(steps: Sequence[Any]) -> list[str]:
    return [group for step in steps for group in step.groups]


def test_steps_have_equally_many_groups_and_the_rest_is_left_over(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ids = fill(url, 11)
    with open_batches(f"{url}&replay=true", groups_per_step=4) as batches:
        steps = list(batches)
        assert list(batches) == []
    assert [step.number for step in steps] == [1, 2]
    assert groups_of(steps) == ids[:8]
    assert batches.left_over == 3
    assert caplog.messages == [
        "the queues have ended; the last 3 groups are less than a step of 4, and stay in the queues"
    ]
    for step in steps:
        assert step.samples == len(step.batch.samples) == 8
        assert step.trained_tokens == int(step.batch.mask.sum())
        assert (step.reward, step.has_images, dict(step.batch.pixels)) == (1.0, False, {})


def test_a_state_contains_the_steps_so_far_and_a_commit_acks_exactly_these(url: str) -> None:
    ids = fill(url, 12)
    with open_batches(url, groups_per_step=2) as batches:
        trained = list(islice(batches, 2))
        state = batches.state_dict()
        next(batches)  # trained, but never saved
        batches.commit()
    assert stats_of(url).backlog_records == 8 * RECORDS
    with open_batches(url, groups_per_step=3) as batches:
        batches.load_state_dict(state)
        trained += islice(batches, 2)
        assert [step.number for step in trained] == [1, 2, 3, 4]
    assert groups_of(trained) == ids[:10]


def test_a_state_before_the_first_step_is_that_of_the_start(url: str) -> None:
    ids = fill(url, 4)
    with open_batches(f"{url}&replay=true", groups_per_step=2) as batches:
        list(islice(batches, 1))
        saved = batches.state_dict()
    with open_batches(f"{url}&replay=true", groups_per_step=2) as batches:
        batches.load_state_dict(saved)
        again = batches.state_dict()
    with open_batches(f"{url}&replay=true", groups_per_step=2) as batches:
        batches.load_state_dict(again)
        assert groups_of(list(batches)) == ids[2:]


def put_with_limits(url: str, limits: Sequence[RolloutLimit]) -> None:
    async def put() -> None:
        async with open_queue(url) as queue:
            for group, limit in enumerate(limits):
                await put_all(queue, await scripted_rollout(f"{group}.0", limit=limit))

    anyio.run(put)


def test_a_step_without_tokens_to_train_has_padding_only_and_is_consumed(url: str) -> None:
    nothing = RolloutLimit.TOKENS
    put_with_limits(url, [nothing, nothing, RolloutLimit.NONE, nothing])
    settings = ReaderSettings(untrained_limits=frozenset({nothing}))
    with open_batches(f"{url}&replay=true", groups_per_step=2, settings=settings) as batches:
        empty, step = batches
        state = batches.state_dict()
    assert (empty.number, empty.groups, empty.samples, empty.trained_tokens) == (1, ("0", "1"), 0, 0)
    assert math.isnan(empty.reward)
    assert empty.batch.mask.tolist() == [[False]]
    assert (step.number, step.groups, step.samples) == (2, ("2", "3"), 1)
    with open_batches(f"{url}&replay=true", groups_per_step=1) as batches:
        batches.load_state_dict(state)
        assert list(batches) == []


def test_batches_end_when_the_launch_has_ended_and_a_last_commit_empties_the_queue(url: str) -> None:
    fill(url, 4)

    async def announce_the_end() -> None:
        async with open_queue(url) as queue:
            await put_status(queue, LaunchPhase.DONE)

    anyio.run(announce_the_end)
    with open_batches(url, groups_per_step=2) as batches:
        assert [step.number for step in batches] == [1, 2]
        batches.state_dict()
        batches.commit()
    assert stats_of(url).backlog_records == 0


def test_queues_have_exact_shares_and_the_others_share_the_part_of_one_that_has_ended(tmp_path: Path) -> None:
    many, few = f"file://{tmp_path}/many", f"file://{tmp_path}/few"
    fill(many, 30, prefix="many")
    fill(few, 4, prefix="few")
    with open_batches({f"{many}?replay=true": 3.0, f"{few}?replay=true": 1.0}, groups_per_step=4) as batches:
        shares = [Counter(group.rstrip("0123456789") for group in step.groups) for step in batches]
    assert shares == [Counter(many=3, few=1)] * 4 + [Counter(many=4)] * 4
    assert batches.left_over == 2


def announce(url: str, phase: LaunchPhase, *, number: int = 1) -> None:
    async def put() -> None:
        async with open_queue(url) as queue:
            await put_status(queue, phase, run=url, launch=number)

    anyio.run(put)


def test_a_queue_whose_launch_was_resumed_gets_its_part_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rollout.trainer.ranks.reading._ASK_ENDED_SECONDS", 0.1)
    caplog.set_level("INFO", "rollout.trainer.ranks.reading")
    long, stopped = f"file://{tmp_path}/long?retain=true", f"file://{tmp_path}/stopped?retain=true"
    announce(long, LaunchPhase.RUNNING)
    fill(long, 3, prefix="long")
    announce(stopped, LaunchPhase.RUNNING)
    fill(stopped, 1, prefix="stopped")
    announce(stopped, LaunchPhase.STOPPED)

    with open_batches({long: 1.0, stopped: 1.0}, groups_per_step=2, timeout=60) as batches:
        steps = list(islice(batches, 2))
        assert f"{stopped} has ended; the other queues share its part" in caplog.text
        announce(stopped, LaunchPhase.RUNNING, number=2)
        fill(stopped, 3, prefix="stopped-again")
        announce(stopped, LaunchPhase.DONE, number=2)
        wait_for(lambda: f"{stopped} has more groups" in caplog.text)
        fill(long, 3, prefix="long-again")
        announce(long, LaunchPhase.DONE)
        steps += batches
        assert batches.left_over == 0
    trained = [group.rstrip("0123456789") for group in groups_of(steps)]
    assert Counter(trained) == {"long": 3, "stopped": 1, "stopped-again": 3, "long-again": 3}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_restored_mix_of_queues_trains_on_each_group_once(tmp_path: Path) -> None:
    urls = [f"file://{tmp_path}/{name}?replay=true" for name in "ab"]
    ids = [
        group for name, url in zip("ab", urls, strict=True) for group in fill(url.partition("?")[0], 10, prefix=name)
    ]
    weights = dict(zip(urls, (1.0, 1.0), strict=True))
    with open_batches(weights, groups_per_step=3) as batches:
        trained = list(islice(batches, 3))
        state = batches.state_dict()
    with open_batches(weights, groups_per_step=1) as batches:
        batches.load_state_dict(state)
        trained += batches
    assert sorted(groups_of(trained)) == ids
    with (
        open_batches(urls[0]) as batches,
        pytest.raises(ReaderStateError, match=r"contains the queue .*which is not open"),
    ):
        batches.load_state_dict(state)


def test_a_state_must_be_loaded_before_the_first_step(url: str) -> None:
    fill(url, 4)
    with open_batches(url, groups_per_step=1) as batches:
        next(batches)
        with pytest.raises(ReaderStateError, match="before you take the first step"):
            batches.load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"saved_by_rank": 3}, "the state was saved by rank 3, but only the first rank"),
        ({"version": 2, "watermarks": {}, "consumed": ""}, r"not a state of open_batches\(\)"),
        ({"version": 1, "step": 1, "mix": {}, "readers": {"a": {"version": 7}}}, "has the format version 7"),
        ({"version": 1, "readers": {}}, "the state is damaged"),
    ],
)
def test_an_invalid_state_is_refused(url: str, state: dict[str, Any], message: str) -> None:
    with open_batches(url) as batches, pytest.raises(ReaderStateError, match=message):
        batches.load_state_dict(state)


def test_a_long_wait_for_groups_is_an_error_that_is_raised_again(url: str) -> None:
    with open_batches(url, timeout=0.1) as batches:
        for _ in range(2):
            with pytest.raises(
                NothingArrived, match=r"no whole group came within 0.1 s\. .* `timeout` of open_batches"
            ):
                next(batches)


def test_an_error_of_the_reading_thread_comes_after_the_steps_before_it(url: str) -> None:
    fill(url, 4)
    with open_batches(url, groups_per_step=2, packing=64, max_length=64) as batches:
        assert len(list(islice(batches, 2))) == 2
    with open_batches(url, groups_per_step=2, packing=5) as batches, pytest.raises(SampleTooLong):
        next(batches)


def test_a_reading_thread_that_hangs_is_an_error_and_batches_close(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(url, 4)
    monkeypatch.setattr("rollout.trainer.ranks.reading._STOP_SECONDS", 0.1)
    released = threading.Event()

    def hang(rewards: Rewards) -> Rewards:
        released.wait(60)
        return rewards

    with (
        open_batches(url, groups_per_step=1, estimator=hang, rank_timeout=1) as batches,
        pytest.raises(ReadingStalled, match=r"it computes the advantages\..* `rank_timeout` of open_batches"),
    ):
        next(batches)
    released.set()
    assert "the thread that reads the steps does not stop" in caplog.text


def test_every_error_of_the_reading_thread_is_raised(url: str) -> None:
    fill(url, 2)

    def exit_early(rewards: Rewards) -> Rewards:
        raise SystemExit("no advantages today")

    with (
        open_batches(url, groups_per_step=1, estimator=exit_early, rank_timeout=5) as batches,
        pytest.raises(SystemExit, match="no advantages today"),
    ):
        next(batches)


def test_exactly_one_step_is_read_ahead(url: str) -> None:
    fill(url, 4)
    begun: list[int] = []
    second, third = threading.Event(), threading.Event()

    def note(rewards: Rewards) -> Rewards:
        begun.append(len(begun) + 1)
        for number, event in ((2, second), (3, third)):
            if number == begun[-1]:
                event.set()
        return rewards

    with open_batches(url, groups_per_step=1, estimator=note) as batches:
        next(batches)
        assert second.wait(30)
        assert not third.wait(1)
        next(batches)
        assert third.wait(30)


def test_the_version_reaches_the_readers(url: str) -> None:
    fill(url, 4)
    with open_batches(url, groups_per_step=1, settings=ReaderSettings(max_staleness=1), timeout=1.0) as batches:
        batches.version = 9  # the rollouts have the version 7
        with pytest.raises(NothingArrived, match="dropped because they were too stale: 8"):
            next(batches)


@pytest.mark.parametrize("steps", [0, 1])
def test_closed_batches_release_the_queue_and_end_their_threads(url: str, steps: int) -> None:
    fill(url, 8)
    threads = set(threading.enumerate())
    with open_batches(url, groups_per_step=2) as batches:
        list(islice(batches, steps))
    assert set(threading.enumerate()) == threads

    async def read_again() -> None:
        async with TrajectoryReader(open_queue(url)) as reader:  # its lease would take 600 s
            assert await reader.receive_group(timeout=30) is not None

    anyio.run(read_again)
