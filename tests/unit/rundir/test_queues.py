"""The queues of a run: their URLs and their kinds of leases."""

from pathlib import Path

from rollout.config.load import load_config
from rollout.rundir.directory import RunDirectory
from rollout.rundir.queues import RunQueues


def queues_of_a_run(repository: Path, directory: Path, *overrides: str) -> RunQueues:
    config = load_config(repository / "configs" / "color_codeword.yaml", ["run.name=colors", *overrides])
    return RunQueues(config, RunDirectory(directory / "a run"))


def test_the_urls_name_the_run_and_the_environment(repository: Path, tmp_path: Path) -> None:
    queues = queues_of_a_run(repository, tmp_path, "queue.url=redis://h/0?stream={environment}")
    assert queues.tasks == f"file://{tmp_path}/a%20run/tasks/colors"
    assert queues.trajectories == "redis://h/0?stream=colors"
    assert queues.control == f"file://{tmp_path}/a%20run/control/colors"


async def test_orders_are_leased_one_by_one_and_trajectories_by_partition(repository: Path, tmp_path: Path) -> None:
    queues = queues_of_a_run(repository, tmp_path)
    async with queues.open_tasks() as first, queues.open_tasks() as second:
        for number in range(2):
            await first.put((b"order",), key=str(number))
        deliveries = [await first.receive(timeout=10), await second.receive(timeout=10)]
        assert None not in deliveries
    async with queues.open_trajectories() as first, queues.open_trajectories() as second:
        for number in range(2):
            await first.put((b"record",), key=str(number))
        assert await first.receive(timeout=10) is not None
        assert await second.receive(timeout=0.1) is None
