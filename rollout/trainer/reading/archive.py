"""A finished run, read again by the same reader that a trainer uses.

async with open_archive(run_directory) as reader:
    async for trajectory in reader:
        ...
"""

from pathlib import Path
from urllib.parse import quote

from rollout.paths import resolve_path
from rollout.trainer.errors import NoArchive, RolloutNotFound
from rollout.trainer.reading.reader import ReaderSettings, TrajectoryReader
from rollout.trainer.trajectory import Trajectory
from transports import open_queue


def open_archive(run_directory: Path | str) -> TrajectoryReader:
    """A reader of everything that was recorded in a run's directory; it ends after the last record and acks nothing.

    Unfinished rollouts come last, as failed trajectories with the error `Unfinished`.

    Raises:
        NoArchive: nothing was recorded there.
    """
    trajectories_directory = resolve_path(Path(run_directory)) / "trajectories"
    if not trajectories_directory.is_dir():
        problem = "does not exist" if not Path(run_directory).is_dir() else "holds no trajectories"
        raise NoArchive(
            f"{run_directory} {problem}. Give the directory of a run whose queue.url is "
            "file://{run_dir}/trajectories?retain=true, the default; other queues keep nothing that was acked."
        )
    queue = open_queue(f"file://{quote(str(trajectories_directory))}?replay=true")
    return TrajectoryReader(queue, ReaderSettings(require_images=False))


async def find_trajectory(run_directory: Path, rollout: str) -> Trajectory:
    """Return the trajectory of a name: ROLLOUT, or ENVIRONMENT/ROLLOUT if several environments have one.

    Raises:
        NoArchive: nothing was recorded there.
        RolloutNotFound: no trajectory has this name, or several have it.
    """
    async with open_archive(run_directory) as reader:
        found = [t async for t in reader if rollout in (t.rollout, f"{t.environment}/{t.rollout}", t.identity)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RolloutNotFound(
            f"{run_directory} has no rollout {rollout!r}; `rollout inspect {run_directory}` lists them."
        )
    raise RolloutNotFound(f"several rollouts are named {rollout!r}: {', '.join(t.identity for t in found)}.")
