"""Plays a recorded rollout again, with its recorded answers and the environment's code of today.

    report = await replay(Path("runs/guess-20260801-101500-1f2e"), "000003.1")
    assert report.same, report

No engine is needed. The environment gets the recorded task and the settings of the run. An attempt that ends with
`Retry` is played again from its start, as in a worker.
"""

import asyncio
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio.to_thread

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import RendererPool, shared_pool
from rollout.config.load import Config
from rollout.config.renderer_options import renderer_options
from rollout.engine import errors as engine_errors
from rollout.engine.errors import EngineError
from rollout.environments.base import Environment, Retry
from rollout.errors import error_text, flatten_exceptions
from rollout.images import ImagePolicy
from rollout.paths import resolve_path
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.task import Task
from rollout.testing.recorded_config import CannotReplay, load_replay_config
from rollout.testing.recorded_model import RecordedEnd, RecordedModel
from rollout.testing.recorded_turns import read_turns
from rollout.testing.replay_report import Difference, ReplayReport
from rollout.testing.score_comparison import compare_ends
from rollout.trainer.reading.archive import find_trajectory
from rollout.trainer.trajectory import Trajectory
from rollout.worker.containment import LoopWatchdog, enter_attempt_context, refuse_exits
from rollout.worker.failures import requested_retry
from rollout.worker.leaving import run_leaving_behind
from rollout.worker.resources import SharedResourcesFailed, open_shared_resources
from rollout.worker.running import EnvironmentRun, RunResult

_TIMEOUT = 300.0
_READER_ERRORS = ("Unfinished", "LostRecords", "DigestMismatch", "RecordError")
_ENGINE_ERRORS = tuple(
    name for name, error in vars(engine_errors).items() if isinstance(error, type) and issubclass(error, EngineError)
)
_OUTSIDE_ERRORS = frozenset((*_READER_ERRORS, *_ENGINE_ERRORS))
"""The names of errors that do not come from the environment, but from outside of it."""


async def replay(
    run_directory: Path | str, rollout: str, *, config: Path | None = None, timeout: float = _TIMEOUT
) -> ReplayReport:
    """Play a recorded rollout again, and report where the environment differs from the record.

    Args:
        run_directory: the run's directory.
        rollout: the rollout's id, or ENVIRONMENT/ROLLOUT if several environments of the run have this id.
        config: the YAML file with the environment and its settings; None means the one that the run saved.
        timeout: the time limit for the environment, in seconds.

    Raises:
        NoArchive, RolloutNotFound: the run recorded nothing, or did not record this rollout.
        CannotReplay: the record of the rollout's start or its configuration is missing, the shared resources cannot be
            opened, every attempt ends with `Retry`, or the environment plays a program.
        ConfigFileError: the environment cannot be imported, or its settings are no longer valid.
    """
    return await _replay(run_directory, rollout, config, timeout, watch_loop=lambda _: nullcontext())


def replay_at_once(
    run_directory: Path | str, rollout: str, *, config: Path | None = None, timeout: float = _TIMEOUT
) -> ReplayReport:
    """Play a recorded rollout again in a new event loop, and return the report; see `replay`.

    An environment that blocks the loop is interrupted after `timeout`, or after `worker.block_timeout` if this is
    shorter. If an environment ignores its cancellation, it still runs when this returns.
    """
    return run_leaving_behind(_replay_watched(run_directory, rollout, config, timeout))


async def _replay_watched(run_directory: Path | str, rollout: str, config: Path | None, timeout: float) -> ReplayReport:
    refuse_exits(asyncio.get_running_loop())
    is_main_thread = threading.current_thread() is threading.main_thread()  # only the main thread can be interrupted
    return await _replay(
        run_directory, rollout, config, timeout, watch_loop=LoopWatchdog if is_main_thread else lambda _: nullcontext()
    )


async def _replay(
    run_directory: Path | str,
    rollout: str,
    config: Path | None,
    timeout: float,
    *,
    watch_loop: Callable[[float], AbstractContextManager[object]],
) -> ReplayReport:
    directory = resolve_path(Path(run_directory))
    trajectory = await find_trajectory(directory, rollout)
    if trajectory.started is None:
        raise CannotReplay(
            f"{trajectory.identity} has no record of its start, so its task is not known. Choose another rollout."
        )
    settings, notes = load_replay_config(directory, trajectory.environment, config)
    renderers = await _open_renderers(settings)
    if renderers is None:
        notes.append(
            f"the tokenizer of {settings.model.path} cannot be opened here, so the answers come from the recorded "
            "messages. In these, malformed tool calls are text"
        )
    turns = read_turns(trajectory, renderers)
    end = _recorded_end(trajectory)
    if end.from_outside:
        notes.append(f"the environment did not end the recorded rollout, so ends are not compared: {end.description}")
    with tempfile.TemporaryDirectory(prefix="rollout-") as images:
        new_model = partial(RecordedModel, turns, end, _image_policy(settings, Path(images)))
        with watch_loop(min(settings.worker.block_timeout, timeout)):
            played = await _play(settings, Task(**trajectory.started.task), new_model, timeout)
    if played.retries and played.retry is None:
        notes.append(f"played again after Retry: {'; '.join(error_text(retry) for retry in played.retries)}")
    if played.retry is not None and (trajectory.error or {}).get("type") != Retry.__name__:
        raise CannotReplay(
            f"{trajectory.identity} cannot be played again: each of {len(played.retries)} attempts ended with Retry: "
            f"{error_text(played.retry)}. A replay needs the judge, the sandbox and other services of the environment; "
            "start them, or give a YAML without them with --config."
        )
    if played.model.asked_for_endpoint:
        raise CannotReplay(
            f"{trajectory.identity} cannot be played again: its environment plays an agent program over HTTP, and a "
            "program does not repeat its requests. Play the task again with `rollout run`."
        )
    differences = _find_differences(trajectory, end, played)
    same_turns = len(played.model.played_turns)
    return ReplayReport(trajectory.identity, len(turns), same_turns, tuple(differences), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Played:
    """The result of all attempts.

    Attributes:
        model: the model of the last attempt.
        result: the score of the last attempt, or the error that ended it; None if the model stopped the replay.
        retries: the `Retry` of each attempt that ended with one.
        retry: the `Retry` of the last attempt, if it ended with one.
    """

    model: RecordedModel
    result: RunResult | None
    retries: tuple[Retry, ...] = ()
    retry: Retry | None = None


async def _play(config: Config, task: Task, new_model: Callable[[], RecordedModel], timeout: float) -> _Played:
    """Play attempts until one does not end with `Retry`, or until `worker.max_attempts` is reached."""
    retries: list[Retry] = []
    try:
        async with open_shared_resources(config.environment_class, config.environment_settings) as shared_resources:
            while True:
                model = new_model()
                result = await _play_attempt(config, shared_resources, task, model, timeout)
                retry = requested_retry(list(flatten_exceptions(result))) if isinstance(result, BaseException) else None
                retries += [retry] if retry is not None else []
                if retry is None or len(retries) == config.worker.max_attempts:
                    return _Played(model, result, tuple(retries), retry)
    except SharedResourcesFailed as error:
        raise CannotReplay(str(error)) from error


async def _play_attempt(
    config: Config, shared_resources: object, task: Task, model: RecordedModel, timeout: float
) -> RunResult | None:
    """Play one attempt, and return its score or its error; None if the replay stopped at a difference."""

    def new_environment() -> Environment:
        environment = config.new_environment()
        environment.shared_resources = shared_resources
        return environment

    enter_attempt_context(model.refuse_calls)
    refuse_calls = partial(model.refuse_calls, "its environment is being closed")
    run = EnvironmentRun(new_environment, task, model, before_closing=refuse_calls)
    stopping = asyncio.ensure_future(model.stopped.wait())
    try:
        await asyncio.wait((*run.ended, stopping), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if model.stopped.is_set():
            return None
        result = run.result
        return TimeoutError(f"the environment did not end within {timeout:g} s") if result is None else result
    finally:
        stopping.cancel()
        await run.end()


def _find_differences(trajectory: Trajectory, end: RecordedEnd, played: _Played) -> list[Difference]:
    model, result = played.model, played.result
    if model.difference is not None:
        return [model.difference]
    if result is None:
        return []
    differences = []
    if model.unplayed_turns:
        turn = min(model.unplayed_turns)
        differences.append(Difference("turns", turn, "the environment ends before this recorded turn"))
    if end.from_outside and not (differences and isinstance(result, BaseException)):
        return differences
    return [*differences, *compare_ends(trajectory, end, result, model.last_limit)]


def _recorded_end(trajectory: Trajectory) -> RecordedEnd:
    error = trajectory.error or {}
    parts = [trajectory.status.value]
    if trajectory.limit is not RolloutLimit.NONE:
        parts.append(f"limit {trajectory.limit}")
    if trajectory.reward is not None:
        parts.append(f"reward {trajectory.reward:g}")
    if error:
        parts.append(f"{error.get('type')}: {error.get('message')}")
    from_outside = trajectory.status is not RolloutStatus.OK and (
        trajectory.status is RolloutStatus.ABANDONED
        or trajectory.limit is RolloutLimit.TIME
        or error.get("type") in _OUTSIDE_ERRORS
    )
    return RecordedEnd(", ".join(parts), trajectory.limit, from_outside)


async def _open_renderers(config: Config) -> RendererPool | None:
    """Return the renderers, which parse sampled tokens; None if the model is not on this machine."""
    model = config.model
    with suppress(AdapterError, OSError):
        return await anyio.to_thread.run_sync(shared_pool, model.path, model.renderer, renderer_options(model))
    return None


def _image_policy(config: Config, directory: Path) -> ImagePolicy:
    images = config.images
    return ImagePolicy(
        images.mode,
        directory,
        allow=images.allow,
        max_bytes=images.max_bytes,
        max_pixels=images.max_pixels,
        memory=images.memory,
    )
