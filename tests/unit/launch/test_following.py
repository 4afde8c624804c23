"""A launch continues if it cannot read the trainer's progress, and reports it once."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from rollout.launch import launch
from rollout.launch.state import LaunchState
from rollout.records.progress import ProgressPublisher, TrainerProgress
from tests.unit.launch.states import prepare_launch
from transports import Delivery, Queue, QueueStorageError, open_queue


@pytest.fixture
async def state(repository: Path, tmp_path: Path) -> AsyncIterator[LaunchState]:
    state = prepare_launch(repository, tmp_path)
    async with aclosing(open_queue(f"memory://{tmp_path.name}-control")) as queue:
        state.environments[0].control_queue = queue
        yield state


async def test_a_control_queue_that_fails_is_reported_once_and_read_again(
    state: LaunchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    (environment,) = state.environments
    queue = environment.control_queue
    assert queue is not None
    receive, failures = type(queue).receive, iter(range(3))

    async def fail_first(self: Queue, *, timeout: float) -> Delivery | None:
        if next(failures, None) is not None:
            raise QueueStorageError("nobody there")
        return await receive(self, timeout=timeout)

    monkeypatch.setattr(type(queue), "receive", fail_first)
    monkeypatch.setattr(launch, "_PROGRESS_POLL_SECONDS", 0.01)
    with capture_logs() as logs, anyio.fail_after(10):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(launch._follow_trainer, environment, state)
            async with ProgressPublisher(queue.url) as publisher:
                await publisher.publish(TrainerProgress(version=3))
            while environment.trainer_progress is None:  # noqa: ASYNC110 - the launch polls too
                await anyio.sleep(0.001)
            task_group.cancel_scope.cancel()
    assert environment.trainer_progress == TrainerProgress(version=3)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "the control queue does not answer"
    ]
    failed, over = (notice.text for notice in state.notices)
    assert "the trainer's progress (queue.control) cannot be read; the launch tries each second: nobody there" in failed
    assert "can be read again, after " in over


async def test_a_launch_stops_reading_progress_when_its_queue_closes(state: LaunchState) -> None:
    (environment,) = state.environments
    assert environment.control_queue is not None
    await environment.control_queue.aclose()
    with anyio.fail_after(10):
        await launch._follow_trainer(environment, state)
    assert not state.notices
