"""The files that environments leave for people are in the run's directory, below the name of the environment."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rollout.config.load import Config
from rollout.environments.base import Environment, EnvironmentSettings, Model, Score
from rollout.metrics.worker import WorkerMetrics
from rollout.records.task import Task
from rollout.rundir.artifacts import attempt_directory
from rollout.rundir.directory import RunDirectory
from rollout.testing import play
from rollout.worker.setup import find_or_start_engines, open_policy


class KeepsALog(Environment):
    async def run(self, task: Task, model: Model) -> Score:
        (model.artifacts_directory() / "log.txt").write_text("kept")
        return Score(1.0)


async def test_artifacts_are_in_the_directory_of_the_run(config: Config, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    task = Task(id="a/b", index=0, seed=0)
    with ExitStack() as engines:
        urls = partial(find_or_start_engines, config, run, engines)
        async with open_policy(config, run, urls, WorkerMetrics("run")) as policy:
            await play(KeepsALog(EnvironmentSettings()), task, policy=policy)
    directory = attempt_directory(run.path / "artifacts" / config.run.name, "a/b.0", 1)
    assert (directory / "log.txt").read_text() == "kept"
