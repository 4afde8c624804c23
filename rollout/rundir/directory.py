"""Manages the directory of a run, and locks it.

assets/images/            the run's images; their names are the hashes of their bytes
artifacts/<environment>/  the files that the environment left for people, a directory for each attempt
claims/<environment>/     which attempts started, and how each rollout ended
tasks/<environment>/      the orders, unless queue.tasks has another URL
trajectories/             the records of rollouts, unless queue.url has another URL
control/<environment>/    the trainer's progress, unless queue.control has another URL
policy/                   the weights that the trainer published last
log.jsonl, workers/       the logs
metrics/                  where each process serves its metrics, and the last values of each process that ended
launches                  how many launches the run has had
ended                     exists when all rollouts of the run have ended; the workers of the run then exit
run.lock                  locked by every process of the run, so that no image is removed while a process works
launch.lock               locked by `rollout run` or `rollout launch`, so that only one of them works in the directory
"""

import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import Config
from rollout.config.references import dump_yaml
from rollout.errors import RolloutError
from rollout.rundir.assets import hold_run_lock
from rollout.rundir.private_files import write_private_file
from transports.urls import has_plain_password, without_password

RUN_CONFIG_NAME = "config.yaml"
"""The name of the file with the configuration of `rollout run`. A launch has a file named after each environment."""


class RunAlreadyActive(RolloutError):
    """Another `rollout run` or `rollout launch` works in this directory."""


class RunDirectoryError(RolloutError):
    """A run's directory, or a file in it, cannot be written."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of a run, and the paths in it.

    Attributes:
        path: the directory itself.
    """

    path: Path

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.path.name

    @property
    def images_path(self) -> Path:
        """The directory of the run's images."""
        return self.path / "assets" / "images"

    @property
    def metrics_path(self) -> Path:
        """The directory with a file for each process that says where the process serves its metrics."""
        return self.path / "metrics"

    @property
    def weights_path(self) -> Path:
        """The directory of the weights that the trainer published last."""
        return self.path / "policy"

    @property
    def ended_marker(self) -> Path:
        """The path of the file that exists when all rollouts of the run have ended."""
        return self.path / "ended"

    def claims_path(self, environment: str) -> Path:
        """Return the directory of an environment's claims and outcomes."""
        return self.path / "claims" / environment

    def artifacts_path(self, environment: str) -> Path:
        """Return the directory of an environment's artifacts; see `rollout.rundir.artifacts`."""
        return self.path / "artifacts" / environment

    def create(self) -> None:
        """Create the directory if it does not exist. Several processes may do this at the same time."""
        try:
            for directory in (self.images_path, self.path / "workers"):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: the run's directory cannot be created: {error.strerror}.") from None

    def save_config(self, config: Config, file_name: str) -> None:
        """Save the whole configuration, including defaults, in a file that only its owner can read.

        Environment variables are saved as the user wrote them, not as their values. A password that the user wrote
        directly in a queue's URL is left out.
        """
        values = config.as_written()
        queue = values["queue"]
        queue |= {key: without_password(url) for key, url in queue.items() if url and has_plain_password(url)}
        try:
            write_private_file(self.path / file_name, dump_yaml(values).encode())
        except OSError as error:
            raise RunDirectoryError(f"{self.path / file_name} cannot be written: {error.strerror}.") from None

    def remove_if_unplayed(self) -> None:
        """Remove the directory if no attempt at a rollout started in it, so that it has only settings and logs.

        Only the process that created the directory may call this, after it left `lock`.
        """
        if next(self.path.glob("claims/*/*"), None) is None:
            shutil.rmtree(self.path, ignore_errors=True)

    def next_launch_number(self) -> int:
        """Count a launch of this run, and return its number, from 1 on. Only the process with the lock may call this.

        Raises:
            RunDirectoryError: the file with the number cannot be read or written.
        """
        file = self.path / "launches"
        try:
            number = int(file.read_text("ascii")) + 1 if file.exists() else 1
            write_private_file(file, f"{number}\n".encode())
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{file}: the number of launches cannot be read or written: {error}. It must be a file with one number."
            ) from None
        return number

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory in a `with` block, so that no image is removed and no other run starts in the directory.

        Raises:
            RunAlreadyActive: another `rollout run` or `rollout launch` works in the directory.
            RunHeldError: the garbage of the run is being collected.
        """
        with hold_run_lock(self.path), (self.path / "launch.lock").open("ab") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunAlreadyActive(
                    f"{self.path}: another `rollout run` or `rollout launch` works in this directory. Wait for it, or "
                    f"stop it. To add workers to the run, use `rollout worker CONFIG --run {self.path}`."
                ) from None
            yield


def create_run_directory(parent: Path, name: str) -> RunDirectory:
    """Create and return the directory of a new run; the directory's name is the run's id."""
    directory = RunDirectory(parent / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    directory.create()
    return directory
