"""Playing the answers of a recorded rollout again, through the environment's code as it is today.

    report = await replay(Path("runs/guess-20260801-101500-1f2e"), "000003.1")
    assert report.same, report

No engine is needed. The environment gets the recorded task and the settings of the run.
"""

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import RendererPool, shared_pool
from renderers_adapter.special_text import SpecialText
from rollout.config.load import Config, load_config
from rollout.engine import errors as engine_errors
from rollout.engine.errors import EngineError
from rollout.environments.base import describe_method
from rollout.errors import ConfigurationError
from rollout.images import ImagePolicy
from rollout.import_path import search_last
from rollout.paths import resolve_path
from rollout.records.kinds import RolloutLimit, RolloutStatus
from rollout.records.task import Task
from rollout.rundir.directory import RUN_CONFIG_NAME
from rollout.testing.recorded_model import RecordedEnd, RecordedModel
from rollout.testing.recorded_turns import read_turns
from rollout.testing.replay_report import Difference, ReplayReport
from rollout.testing.score_comparison import compare_ends
from rollout.trainer.reading.archive import find_trajectory
from rollout.trainer.trajectory import Trajectory
from rollout.worker.closing import EnvironmentCloser
from rollout.worker.failures import make_printable
from rollout.worker.resources import open_shared_resources
from rollout.worker.scores import CheckedScore, check_score

_TIMEOUT = 300.0
_CLEANUP_TIMEOUT = 5.0
_UNREQUESTED_CANCELLATION = "the environment raised a cancellation of its own"
_READER_ERRORS = ("Unfinished", "LostRecords", "DigestMismatch", "RecordError")
_ENGINE_ERRORS = tuple(
    name for name, error in vars(engine_errors).items() if isinstance(error, type) and issubclass(error, EngineError)
)
_OUTSIDE_ERRORS = frozenset((*_READER_ERRORS, *_ENGINE_ERRORS))
"""Errors by which a rollout ends whatever its environment says."""


class CannotReplay(ConfigurationError):
    """A rollout has no records from which it could be played again, or its environment is not known."""


async def replay(
    run_directory: Path | str, rollout: str, *, config: Path | None = None, timeout: float = _TIMEOUT
) -> ReplayReport:
    """Play a recorded rollout again, and say where the environment says something else than it said then.

    Args:
        run_directory: the run's directory.
        rollout: the rollout's id, or ENVIRONMENT/ROLLOUT if several environments of the run have one.
        config: the YAML that names the environment and its settings; None: what the run wrote down.
        timeout: seconds that the environment may take.

    Raises:
        NoArchive, RolloutNotFound: the run recorded nothing, or no such rollout.
        CannotReplay: the rollout has no start, or it is not known which environment played it.
        ConfigFileError: the environment cannot be imported, or its settings are no longer right.
    """
    directory = resolve_path(Path(run_directory))
    trajectory = await find_trajectory(directory, rollout)
    if trajectory.started is None:
        raise CannotReplay(
            f"{trajectory.identity} has no record of its start, so its task is not known. Choose another."
        )
    settings = _load_config(directory, trajectory.environment, config)
    renderers, notes = await _open_renderers(settings)
    turns = read_turns(trajectory, renderers)
    end = _recorded_end(trajectory)
    if end.from_outside:
        notes.append(f"the recorded rollout was ended from outside, so its end is not compared: {end.description}")
    with tempfile.TemporaryDirectory(prefix="rollout-") as images:
        model = RecordedModel(turns, end, _image_policy(settings, Path(images)))
        outcome = await _play(settings, Task(**trajectory.started.task), model, timeout)
    differences = _find_differences(trajectory, end, model, outcome)
    same_turns = len(model.played)
    return ReplayReport(trajectory.identity, len(turns), same_turns, tuple(differences), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Stopped:
    """The model gave no more answers."""


async def _play(
    config: Config, task: Task, model: RecordedModel, timeout: float
) -> CheckedScore | BaseException | _Stopped:
    """Play until the environment has a score, raises, or says something else than it said then."""
    async with open_shared_resources(config.environment_class, config.environment_settings) as shared_resources:
        return await _play_until_stopped(config, shared_resources, task, model, timeout)


async def _play_until_stopped(
    config: Config, shared_resources: object, task: Task, model: RecordedModel, timeout: float
) -> CheckedScore | BaseException | _Stopped:
    playing = asyncio.ensure_future(_run_environment(config, shared_resources, task, model))
    stopping = asyncio.ensure_future(model.stopped.wait())
    try:
        await asyncio.wait((playing, stopping), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if model.stopped.is_set():
            return _Stopped()
        if not playing.done():
            return TimeoutError(f"the environment is not done within {timeout:g} s")
        return RuntimeError(_UNREQUESTED_CANCELLATION) if playing.cancelled() else playing.result()
    finally:
        for task_ in (playing, stopping):
            task_.cancel()
        await asyncio.wait((playing, stopping), timeout=_CLEANUP_TIMEOUT)


async def _run_environment(
    config: Config, shared_resources: object, task: Task, model: RecordedModel
) -> CheckedScore | BaseException:
    """Make the environment, run it and close it; return its score, or what it raised."""
    closer = EnvironmentCloser()
    try:
        closer.environment = environment = config.new_environment()
        environment.shared_resources = shared_resources
        returned = await environment.run(task, model)
        return check_score(returned, describe_method(environment, environment.scoring_method), model.played)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
        return make_printable(error)
    finally:
        await closer.close()


def _find_differences(
    trajectory: Trajectory, end: RecordedEnd, model: RecordedModel, outcome: CheckedScore | BaseException | _Stopped
) -> list[Difference]:
    if model.difference is not None:
        return [model.difference]
    if isinstance(outcome, _Stopped):
        return []
    differences = []
    if model.unplayed_turns:
        turn = min(model.unplayed_turns)
        differences.append(Difference("turns", turn, "the environment ends before it; the recorded rollout had it"))
    if end.from_outside and not (differences and isinstance(outcome, BaseException)):
        return differences
    return [*differences, *compare_ends(trajectory, end, outcome, model.last_limit)]


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


def _load_config(directory: Path, environment: str, file: Path | None) -> Config:
    """Load the configuration that names the environment: the given one, or what the run wrote down."""
    # By default a run's directory is in `runs`, beside the YAML and the modules of the environment.
    search_last(str(directory.parent.parent))
    if file is not None:
        return load_config(file)
    candidates = (directory / f"{environment}.yaml", directory / RUN_CONFIG_NAME)
    for candidate in candidates:
        if candidate.is_file() and (config := load_config(candidate)).run.name == environment:
            return config
    raise CannotReplay(
        f"{directory} has no configuration of the environment {environment}: neither {environment}.yaml nor "
        f"{RUN_CONFIG_NAME} is of it. Name its YAML with --config."
    )


async def _open_renderers(config: Config) -> tuple[RendererPool | None, list[str]]:
    """Open what reads sampled tokens; if the model is not on this machine, say what follows from that."""
    model = config.model
    with suppress(AdapterError, OSError):
        pool = await anyio.to_thread.run_sync(
            shared_pool, model.path, model.renderer, model.template, SpecialText(model.special_text)
        )
        return pool, []
    return None, [
        f"the tokenizer of {model.path} cannot be opened here, so answers are taken from the recorded messages, in "
        "which malformed tool calls are text"
    ]


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
