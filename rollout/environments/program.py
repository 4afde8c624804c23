"""The environment of a program: a command that calls the policy over HTTP, and a score of what it did.

    environment:
      class: rollout.environments.program:Program
      command: ["{python}", "{config_dir}/agent.py", "{task.question}"]
      score: scores:right_answer

Each rollout has a workspace of its own, and runs the program there to its end. Then its key is no longer valid, all its
processes have ended, and its work is scored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
import structlog

from rollout.environments.base import Environment, Model, Score
from rollout.environments.program_checks import check_program
from rollout.environments.program_errors import (
    TaskUnusable,
    hide_workspace,
)
from rollout.environments.program_playing import PlayedProgram, run_in_thread
from rollout.environments.program_scoring import ScoreFunction
from rollout.environments.program_settings import PROGRAM_SCORES_ITSELF, ProgramSettings
from rollout.environments.program_texts import check_texts
from rollout.programs.leftovers import remove_abandoned
from rollout.programs.placeholders import PlaceholderError
from rollout.programs.slots import machine_slot
from rollout.programs.workspace import Workspace, WorkspaceError
from rollout.records.task import Task

log = structlog.get_logger()


_LONG_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ProgramResources:
    """What all rollouts of one worker share.

    Attributes:
        slots: the limit for the programs of this worker; None: none.
        score: the function that scores; None if something else does.
    """

    slots: anyio.Semaphore | None
    score: ScoreFunction | None


class Program(Environment):
    """Plays a program, which calls the policy over HTTP; see `docs/agents.md`."""

    Settings = ProgramSettings
    settings: ProgramSettings

    @classmethod
    def check_machine(cls, settings: Any) -> str | None:
        """Find the program, its template and its sandbox; see `Environment.check_machine`."""
        return check_program(settings)

    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: Any) -> AsyncIterator[ProgramResources]:
        """Remove what dead workers left, and load the function that scores."""
        await anyio.to_thread.run_sync(remove_abandoned)
        limit, score = settings.max_processes.worker, settings.score
        yield ProgramResources(
            anyio.Semaphore(limit) if limit is not None else None,
            ScoreFunction.load(score, settings.config_dir)
            if isinstance(score, str) and score != PROGRAM_SCORES_ITSELF
            else None,
        )

    @classmethod
    @asynccontextmanager
    async def admission(cls, settings: Any, shared_resources: Any) -> AsyncIterator[None]:
        """Wait until fewer programs run than `max_processes` allows."""
        loop, limits = asyncio.get_running_loop(), settings.max_processes
        notice = loop.call_later(_LONG_WAIT_SECONDS, _report_long_wait, limits.worker, limits.machine)
        async with AsyncExitStack() as stack:
            stack.callback(notice.cancel)
            if shared_resources.slots is not None:
                await stack.enter_async_context(shared_resources.slots)
            await stack.enter_async_context(machine_slot(limits.machine))
            notice.cancel()
            yield

    def check_task(self, task: Task) -> None:
        """Check that the task has all that the placeholders name; see `Environment.check_task`."""
        try:
            check_texts(self.settings, task)
        except PlaceholderError as error:
            raise TaskUnusable(str(error)) from None

    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout: run the program, and score its work."""
        artifacts = model.artifacts_directory()
        async with _open_workspace() as workspace:
            played = PlayedProgram(self.settings, task, workspace, artifacts)
            keep = self.settings.keep
            try:
                score = await played.play(model, self.shared_resources.score)
            except Exception as error:
                hide_workspace(error, workspace)
                if keep.when != "never":
                    await _keep_files(played)
                raise
            if keep.when == "always":
                await _keep_files(played)
            return score


async def _keep_files(played: PlayedProgram) -> None:
    """Keep the files of a program. If that fails, as on a full disk, the result of the rollout does not change."""
    try:
        await run_in_thread(played.keep_files)
    except (OSError, WorkspaceError) as error:
        log.warning("the files of a program cannot be kept", error=str(error))


@cache
def _report_long_wait(worker: int | None, machine: int) -> None:
    """Log once that programs wait for a slot."""
    log.warning(
        "a rollout waits until fewer programs run (environment.max_processes)", for_worker=worker, for_machine=machine
    )


@asynccontextmanager
async def _open_workspace() -> AsyncIterator[Workspace]:
    """Yield a new workspace, and remove it at the end."""
    created: list[Workspace] = []
    try:
        await run_in_thread(lambda: created.append(Workspace.create()))
        yield created[0]
    finally:
        for workspace in created:
            try:
                await run_in_thread(workspace.remove)
            except WorkspaceError as error:  # such as a file that not even its owner may change
                log.warning("the workspace of a program cannot be removed", error=str(error))
