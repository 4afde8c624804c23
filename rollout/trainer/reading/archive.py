"""Reads the recorded trajectories of a finished run with a trainer's reader.

async with open_archive(run_directory) as reader:
    async for trajectory in reader:
        ...
"""

from pathlib import Path
from urllib.parse import quote

from rollout.paths import resolve_path
from rollout.trainer.errors import NoArchive, RolloutNotFound
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.trajectory import Trajectory
from transports import open_queue


def open_archive(run_directory: Path | str) -> TrajectoryReader:
    """Return a reader for all trajectories in a run's directory. It ends after the last record and acks nothing.

    It returns unfinished rollouts last, as failed trajectories with the error `Unfinished`.

    Raises:
        NoArchive: the directory has no recorded trajectories.
    """
    trajectories_directory = resolve_path(Path(run_directory)) / "trajectories"
    if not trajectories_directory.is_dir():
        problem = "does not exist" if not Path(run_directory).is_dir() else "has no recorded trajectories"
        raise NoArchive(
            f"{run_directory} {problem}. Use the directory of a run with the default queue.url, "
            "file://{run_dir}/trajectories?retain=true. Other queues delete acked records."
        )
    queue = open_queue(f"file://{quote(str(trajectories_directory))}?replay=true")
    return TrajectoryReader(queue, ReaderSettings(require_images=False))


async def find_trajectory(run_directory: Path, rollout: str) -> Trajectory:
    """Return the trajectory with this name.

    The name is ROLLOUT, or ENVIRONMENT/ROLLOUT if several environments have a rollout of that name.

    Raises:
        NoArchive: the directory has no recorded trajectories.
        RolloutNotFound: no trajectory has this name, or several have it.
    """
    async with open_archive(run_directory) as reader:
        found = [t async for t in reader if rollout in (t.rollout, f"{t.environment}/{t.rollout}", t.identity)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RolloutNotFound(
            f"{run_directory} has no rollout {rollout!r}. To list its rollouts, run `rollout inspect {run_directory}`."
        )
    raise RolloutNotFound(
        f"{run_directory} has several rollouts with the name {rollout!r}. Choose one of "
        f"{', '.join(t.identity for t in found)}."
    )
