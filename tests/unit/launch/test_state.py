"""The state of a launch: what its report says of several workers together."""

from pathlib import Path

from rollout.launch.local import LocalPlace
from rollout.launch.state import LaunchState
from rollout.launch.supervisor import RestartBudget, WorkerSlot
from rollout.rundir.manifest import create_run
from transports import open_queue


def test_requests_that_workers_sent_once_more_are_summed_also_those_of_dead_workers(
    repository: Path, tmp_path: Path
) -> None:
    config = repository / "configs" / "color_codeword.yaml"
    directory, launch_configs = create_run([config], (f"run.directory={tmp_path}",))
    state = LaunchState(directory, launch_configs, 2, LocalPlace(), is_resumed=False)
    queue = open_queue(f"memory://{tmp_path.name}", lease="record")
    slots = [WorkerSlot(name, "color_codeword", (), tmp_path, queue, 1.0, RestartBudget(1)) for name in ("a", "b")]
    state.environments[0].worker_slots = slots
    for slot, count in zip(slots, (2, 3), strict=True):
        slot.metric_totals.add_changes({"rollout_engine_retries_total": [([["environment", "color_codeword"]], count)]})
    slots[0].metric_totals.end_worker()
    assert state.report()["request_retries"] == 5
