"""Plays one rollout in a test, with the parts that a real rollout uses."""

import asyncio
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError

from rollout.config.environment_class import EnvironmentUnusable, class_problem
from rollout.config.problems import describe_problem, key_of, show_key
from rollout.environments.base import Environment, EnvironmentSettings, Retry
from rollout.records.task import Task
from rollout.rundir.artifacts import attempt_directory
from rollout.session.policy import PolicyClient
from rollout.tasks.orders import RolloutOrder
from rollout.testing.answers import Answers, AnswerScript
from rollout.testing.played import Played, RecordingSession
from rollout.testing.policies import answering_policy
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.worker.attempt import Attempt, RunMetadata
from rollout.worker.failures import Failure
from rollout.worker.leaving import run_leaving_behind
from rollout.worker.resources import open_shared_resources
from transports import open_queue

_TIMEOUT = 300.0
_MAX_ATTEMPTS = 3
"""The default of `worker.max_attempts`."""


class PlayRollout(Protocol):
    """The type of the fixture `play_rollout`, which is `play` for tests that are not coroutines."""

    def __call__(
        self,
        environment: Environment | type[Environment],
        task: Task | Mapping[str, Any] | None = None,
        *,
        settings: EnvironmentSettings | Mapping[str, Any] | None = None,
        answers: Answers,
        allow: Sequence[Path] = (),
        timeout: float = _TIMEOUT,
    ) -> Played:
        """Play one rollout, and return it; see `rollout.testing.play`."""
        ...


async def play(
    environment: Environment | type[Environment],
    task: Task | Mapping[str, Any] | None = None,
    *,
    settings: EnvironmentSettings | Mapping[str, Any] | None = None,
    answers: Answers | None = None,
    policy: PolicyClient | None = None,
    allow: Sequence[Path] = (),
    timeout: float = _TIMEOUT,
) -> Played:
    """Play one rollout, and return its conversation, its score and its trajectory.

    Args:
        environment: the environment's class, or an unused instance. After a `Retry`, a class is played again with the
            answers that follow, up to three times.
        task: the task, or only the `data` of a task with the id 0 and the seed 0; None means no data.
        settings: the keys of the section `environment`, if a class is given; None means their defaults.
        answers: the answers of the policy: a list of strings and `Answer` objects, or a function that gets the
            conversation and returns one answer. The function may be a coroutine function. Use a function if calls of
            `chat` run at the same time.
        policy: a policy that answers instead of `answers`, such as that of `embedded_policy`.
        allow: with `answers`, the directories from which `file://` images may come, as `images.allow` in the YAML.
        timeout: the time limit for the rollout, in seconds.

    Raises:
        OutOfAnswers: the environment asked for more answers than the list has.
        AnswerUnusable: an answer has a wrong type, or its tool calls cannot be written in the model's format.
        EnvironmentUnusable: no instance of the class can be made, or its settings are wrong.
    """
    maker = _EnvironmentMaker.of(environment, settings)
    if (answers is None) == (policy is None):
        raise TypeError("play() takes either answers=[…] or policy=…; give one of them")
    task = task if isinstance(task, Task) else Task(id="0", index=0, seed=0, data=task or {})
    if policy is not None:
        return await _play_attempts(maker, task, policy, timeout)
    assert answers is not None
    script = AnswerScript(answers)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="rollout-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        async with answering_policy(directory, script, allow=allow) as scripted_policy:
            played = await _play_attempts(maker, task, scripted_policy, timeout, script.note_retry)
        if script.error is not None:
            raise script.error
        played = replace(played, unused_answers=script.unused)
        if played.artifacts is not None:  # the test can read the files as long as it has the rollout
            weakref.finalize(played, stack.pop_all().close)
    return played


@dataclass(frozen=True, slots=True)
class _EnvironmentMaker:
    """Makes the environment of each attempt. An instance from the test can play only one attempt."""

    environment_class: type[Environment]
    settings: EnvironmentSettings
    instance: Environment | None

    @classmethod
    def of(
        cls, environment: Environment | type[Environment], settings: EnvironmentSettings | Mapping[str, Any] | None
    ) -> Self:
        if isinstance(environment, Environment):
            if settings is not None:
                raise TypeError(
                    "play() got an instance, which already has settings; give the class, or leave out settings=…"
                )
            return cls(type(environment), environment.settings, environment)
        if (problem := class_problem(environment)) is not None:
            raise EnvironmentUnusable(f"{getattr(environment, '__name__', environment)} {problem}.")
        if not isinstance(settings, EnvironmentSettings):
            settings = _check_settings(environment, settings or {})
        return cls(environment, settings, None)

    @property
    def max_attempts(self) -> int:
        return _MAX_ATTEMPTS if self.instance is None else 1

    def make(self, shared_resources: object) -> Environment:
        environment = self.environment_class(self.settings) if self.instance is None else self.instance
        environment.shared_resources = shared_resources
        return environment


def _check_settings(environment_class: type[Environment], settings: Mapping[str, Any]) -> EnvironmentSettings:
    model = environment_class.Settings
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = [
            f"{show_key(('settings', *key_of(problem)))}: {describe_problem(model, problem, problem['input'])}"
            for problem in error.errors(include_url=False)
            if problem["type"] != "default_factory_not_called"  # caused by a problem in another key
        ]
    raise EnvironmentUnusable(
        "\n".join(
            [*problems, f"{environment_class.__name__} has the settings {', '.join(model.model_fields) or '(none)'}."]
        )
    )


async def _play_attempts(
    maker: _EnvironmentMaker,
    task: Task,
    policy: PolicyClient,
    timeout: float,
    note_retry: Callable[[Retry], object] = lambda _: None,
) -> Played:
    """Play attempts as a worker does; their records go through a memory queue to a trainer's reader."""
    metadata = RunMetadata("test", maker.environment_class.__name__, policy.engine.model, "0", "0" * 16)
    url = f"memory://{uuid.uuid4().hex}"
    close_failures: list[Failure] = []
    async with (
        open_queue(url) as queue,
        TrajectoryReader(open_queue(url)) as reader,
        open_shared_resources(maker.environment_class, maker.settings) as shared_resources,
    ):
        for attempt_number in range(1, maker.max_attempts + 1):
            attempt = Attempt(RolloutOrder(task, 0, 1), attempt_number, policy, metadata, queue)
            session = attempt.session = RecordingSession(policy, attempt.stream)
            try:
                await attempt.play(partial(maker.make, shared_resources), timeout=timeout)
                break
            except Retry as retry:
                note_retry(retry)
                if attempt_number == maker.max_attempts:
                    await attempt.finish_without_playing(retry)
            finally:
                close_failures += [attempt.close_failure] if attempt.close_failure is not None else []
        trajectory = await reader.receive(timeout=timeout)
    assert trajectory is not None
    close_failure = close_failures[0].traceback or close_failures[0].full_traceback if close_failures else None
    return Played(
        session.recorded_turns,
        trajectory,
        attempt.failure,
        close_failure=close_failure,
        artifacts=_existing_artifacts(attempt),
    )


def _existing_artifacts(attempt: Attempt) -> Path | None:
    """Return the directory that an attempt got from `model.artifacts_directory()`; None if it did not ask for it."""
    if attempt.policy.artifacts is None:
        return None
    directory = attempt_directory(attempt.policy.artifacts, attempt.order.rollout_id, attempt.stream.attempt_id.attempt)
    return directory if directory.exists() else None


def play_at_once(*args: Any, **kwargs: Any) -> Played:
    """Play one rollout in a new event loop; see `play`. Code that ignores its cancellation still runs at the end.

    Raises:
        RuntimeError: an event loop runs already, so the test must await `play`.
    """
    if _loop_is_running():
        raise RuntimeError(
            "an event loop runs already; in a test that is a coroutine, write `await rollout.testing.play(…)`"
        )
    return run_leaving_behind(play(*args, **kwargs))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
