"""A worker serves its metrics, and one that a launch started plays even if it cannot."""

import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.config.load import Config
from rollout.metrics.server import MetricsPortTaken
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.directory import RunDirectory
from rollout.worker.link import SupervisorLink
from rollout.worker.process import WorkerRunner

ADDRESS_OF_ANOTHER_MACHINE = "192.0.2.1"


@pytest.fixture
def runner(config: Config, tmp_path: Path) -> WorkerRunner:
    elsewhere = replace(config, metrics=config.metrics.model_copy(update={"host": ADDRESS_OF_ANOTHER_MACHINE}))
    return WorkerRunner(elsewhere, RunDirectory(tmp_path / "run"), "worker-0")


@pytest.fixture
def link() -> Iterator[SupervisorLink]:
    supervisor_end, worker_end = socket.socketpair()
    with closing(supervisor_end), closing(SupervisorLink(worker_end.detach())) as link:
        yield link


async def test_a_worker_of_a_launch_on_another_machine_plays_without_serving(
    runner: WorkerRunner, link: SupervisorLink
) -> None:
    async with AsyncExitStack() as stack:
        export = await replace(runner, supervisor_link=link)._export_metrics(WorkerMetrics("squares"), stack)
        assert export.not_ready_reason() == "it is starting"


async def test_a_worker_that_somebody_started_says_that_it_cannot_serve(runner: WorkerRunner) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(MetricsPortTaken, match=f"{ADDRESS_OF_ANOTHER_MACHINE}:0: .*another metrics.host"):
            await runner._export_metrics(WorkerMetrics("squares"), stack)
