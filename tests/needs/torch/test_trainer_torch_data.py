"""The dataset with a `DataLoader`: every trajectory is trained once, however far the loader reads ahead."""

import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import pytest
from torch.utils.data import DataLoader

from rollout.records.launch_status import LaunchPhase
from rollout.trainer import (
    Batch,
    Group,
    GroupPolicy,
    NothingArrived,
    Portion,
    ReaderSettings,
    ReaderStateError,
    TrajectoryDataset,
    batch_of,
)
from rollout.trainer.testing import put_all, put_status, scripted_rollout
from transports import QueueStats, open_queue

GROUPS = 12
NAMES = sorted(f"{group:03d}.{sample}" for group in range(GROUPS) for sample in range(2))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A queue with all groups in it."""
    url = f"file://{tmp_path}/trajectories?partitions=4&lease_time=1"

    async def fill() -> None:
        async with open_queue(url) as queue:
            for name in NAMES:
                await put_all(queue, await scripted_rollout(name, group_size=2))

    anyio.run(fill)
    return url


def stats_of(url: str) -> QueueStats:
    async def ask() -> QueueStats:
        async with open_queue(url) as queue:
            return await queue.stats()

    return anyio.run(ask)


def loader_of(dataset: TrajectoryDataset[Batch], workers: int) -> Iterator[Portion[Batch]]:
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, in_order=False)
    return iter(loader)


def rollouts_of(portions: Sequence[Portion[Batch]]) -> list[str]:
    return [sample.rollout for portion in portions for sample in portion.batch.samples]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 2), (2, 0), (0, 2)])
def test_untrained_groups_that_were_read_ahead_come_again_after_a_restart(url: str, first: int, second: int) -> None:
    dataset = TrajectoryDataset(url, batch_of)
    portions = loader_of(dataset, first)
    trained = list(islice(portions, 5))
    for portion in trained:
        dataset.trained(portion)
    state = dataset.state_dict()
    next(portions)  # trained, but never saved
    dataset.commit()
    del portions  # the process dies

    resumed = TrajectoryDataset(url, batch_of)
    resumed.load_state_dict(state)
    rest = loader_of(resumed, second)
    trained += islice(rest, GROUPS - 5)
    resumed.close()
    assert sorted(rollouts_of(trained)) == NAMES


@pytest.mark.parametrize("workers", [0, 2])
def test_a_commit_is_acked_while_the_loader_waits(url: str, workers: int) -> None:
    dataset = TrajectoryDataset(url, batch_of)
    portions = loader_of(dataset, workers)
    for portion in islice(portions, GROUPS - 2):
        dataset.trained(portion)
    dataset.state_dict()
    dataset.commit()
    deadline = time.monotonic() + 30
    while (left := stats_of(url).backlog_records) != 2 * 2 * 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == 2 * 2 * 5
    dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_closed_dataset_ends_and_releases_its_partitions(url: str, workers: int) -> None:
    long_lease_url = url.replace("lease_time=1", "lease_time=600")
    dataset = TrajectoryDataset(long_lease_url, batch_of)
    portions = loader_of(dataset, workers)
    assert len(list(islice(portions, GROUPS))) == GROUPS
    dataset.close()
    assert list(portions) == []
    again = TrajectoryDataset(long_lease_url, batch_of)
    assert sorted(rollouts_of(list(islice(loader_of(again, 0), GROUPS)))) == NAMES


def test_the_processes_of_a_loader_do_not_outlive_a_trainer_that_was_killed(url: str) -> None:
    script = Path(__file__).with_name("loading_trainer.py")
    command = [sys.executable, str(script), url, str(GROUPS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "waiting\n"
        trainer.kill()
        # The loader processes inherit the pipe, so it ends when the last of them ends.
        assert select.select([trainer.stdout], [], [], 60)[0]
        assert trainer.stdout.read() == ""


def test_a_second_pass_in_the_same_process_continues_after_the_trained_groups(url: str) -> None:
    dataset = TrajectoryDataset(url, batch_of, groups_per_batch=2)
    trained = []
    for _ in range(3):
        for portion in islice(loader_of(dataset, 0), 2):
            trained.append(portion)
            dataset.trained(portion)
        dataset.state_dict()
        dataset.commit()
    assert sorted(rollouts_of(trained)) == NAMES


def test_groups_without_a_batch_are_skipped(url: str) -> None:
    def make(groups: Sequence[Group]) -> Batch | None:
        return batch_of(groups) if groups[0].id > "005" else None

    portions = loader_of(TrajectoryDataset(url, make), 0)
    assert min(rollouts_of(list(islice(portions, GROUPS - 6)))) == "006.0"


def test_the_version_reaches_the_readers(url: str) -> None:
    dataset = TrajectoryDataset(url, batch_of, settings=ReaderSettings(max_staleness=1), timeout=1.0)
    dataset.version = 9
    with pytest.raises(
        NothingArrived,
        match=r"no whole group came within 1 s.* too stale: 24",
    ):
        next(loader_of(dataset, 0))


def test_a_replayed_run_ends(url: str) -> None:
    settings = ReaderSettings(groups=GroupPolicy(keep_partial=1))
    dataset = TrajectoryDataset(f"{url}&replay=true", batch_of, groups_per_batch=5, settings=settings)
    portions = list(loader_of(dataset, 0))
    assert [len({sample.rollout for sample in portion.batch.samples}) for portion in portions] == [10, 10, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_ends_when_the_launch_has_ended(url: str, workers: int) -> None:
    async def announce_the_end() -> None:
        async with open_queue(url) as queue:
            await put_status(queue, LaunchPhase.DONE)

    anyio.run(announce_the_end)
    portions = list(loader_of(TrajectoryDataset(url, batch_of), workers))
    assert sorted(rollouts_of(portions)) == NAMES


def test_a_state_of_another_kind_is_refused_at_once(url: str) -> None:
    with pytest.raises(ReaderStateError):
        TrajectoryDataset(url, batch_of).load_state_dict({"version": 1})
