"""The base classes of environments. An environment is a class whose coroutine `run` plays one rollout.

    class Guess(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            reply = await model.chat([{"role": "user", "content": "Heads or tails?"}])
            return Score(reward=float(reply.text.strip() == "heads"))

Every attempt at a rollout has its own instance, so `run` can keep its state on `self`; `close` releases it. `shared`
makes expensive resources once for all instances of a worker.
An environment may call `chat` any number of times, with any conversation: extended, cut, compacted or forked. The trace
finds the messages that are already known, so an environment never handles tokens.
"""

import abc
import inspect
import math
import random
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from rollout.environments.endpoint import Endpoint, EndpointSocket, EndpointUnavailable, RootRule
from rollout.errors import RolloutError
from rollout.paths import PathUnusable, resolve_path
from rollout.records.bounds import MAX_GROUP_SIZE
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason, Message, ToolCall
from rollout.records.task import Task

QUEUE_SOURCE = "queue"
"""The value of `tasks.source` that means: another program puts the orders on the tasks queue."""


class EnvironmentSettings(BaseModel):
    """The keys of the YAML's section `environment`, except `class`. Subclass it to add keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """Return the keys that decide what is played, for `Config.digest`; leave out the paths of one machine."""
        return self.model_dump(mode="json", by_alias=True)


def _resolve_source(source: str | None, info: ValidationInfo) -> str | None:
    """Return the source; a path becomes absolute, relative to the directory of the YAML file."""
    if source is None or source == QUEUE_SOURCE or "://" in source or not info.context:
        return source
    try:
        return str(resolve_path(Path(source), info.context["directory"]))
    except PathUnusable as error:
        raise ValueError(error.reason) from None


_GENERATED_TASKS = 16


def _default_count(fields_before: dict[str, Any]) -> int:
    return _GENERATED_TASKS if fields_before.get("source") in (None, QUEUE_SOURCE) else 0


def _check_count(count: int, info: ValidationInfo) -> int:
    if count < 0:
        raise ValueError("expected a number that is not negative")
    if count == 0 and info.data.get("source") is None:
        raise ValueError("expected at least 1; 0 means all rows of tasks.source, but tasks.source is not set")
    return count


class TaskSettings(BaseModel):
    """The keys of the YAML's section `tasks`. Subclass it to add keys that describe the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str | None, AfterValidator(_resolve_source)] = None
    """Where tasks come from, if not from the environment: .jsonl, .parquet, hf://owner/name, queue."""
    count: Annotated[int, AfterValidator(_check_count)] = Field(default_factory=_default_count)
    """The number of tasks (default: 16). With a source: the limit for its rows (default: 0, all rows)."""
    group_size: int = Field(default=4, ge=1, le=MAX_GROUP_SIZE)
    """The number of rollouts of each task; they are one group."""
    seed: int = Field(default=0, ge=0)
    """The seed from which the seed of each task is computed."""


class ContextExhausted(RolloutError):
    """The conversation no longer fits into the model's context.

    `chat` raises this error. An environment may catch it and score the rollout so far; otherwise, the rollout is
    unscored.
    """


class Retry(RolloutError):
    """The attempt failed for a reason outside the policy: for example, a judge did not answer, or a sandbox broke.

    An environment raises it with the reason, anywhere except in `close` and `shared`. A fresh environment then plays
    the rollout again from its start. After `worker.max_attempts` attempts, the rollout fails with the last reason. An
    attempt that ends with `Retry` is never used for training.
    """


class ArtifactsUnavailable(RolloutError):
    """`model.artifacts_directory()` cannot be used where the rollout is played."""


class SharedResourcesMissing(RolloutError):
    """An instance used `shared_resources` before the worker set them."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a rollout: one reward, or several named rewards whose weighted sum is the reward.

        Score(reward=1.0)
        Score(rewards={"answer": 1.0, "format": 1.0}, weights={"format": 0.2})

    Attributes:
        reward: the reward that the trainer uses; a finite number. If there are `rewards`, it is computed from them.
        metrics: further numbers by name. A run reports their means; the trainer does not use them.
        rewards: the named rewards.
        weights: the weight of each of the `rewards`; 1 for a name that is not here.
        turn_rewards: the rewards of single answers, by `Reply.turn`. They are not part of `reward`.
        limit: the limit that stopped the rollout, if the environment knows it; otherwise the worker finds it.
    """

    reward: float = None  # type: ignore[assignment]  # never None after __post_init__
    metrics: Mapping[str, float] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    turn_rewards: Mapping[int, float] = field(default_factory=dict)
    limit: RolloutLimit | Literal["none", "turns", "tokens", "context", "time"] = RolloutLimit.NONE

    def __post_init__(self) -> None:
        if not self.rewards:
            return
        if self.reward is not None:
            raise ValueError(
                "a Score takes reward or rewards, not both, because reward is computed from rewards; leave one out"
            )
        try:
            reward = sum(reward * self.weights.get(name, 1.0) for name, reward in self.rewards.items())
        except Exception:  # noqa: BLE001 - the worker checks the score, and names the wrong reward in its error
            reward = math.nan
        object.__setattr__(self, "reward", reward)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the policy.

    Attributes:
        message: the answer as a message, as chat APIs write it; append it to the conversation to continue from it.
        text: the text of the answer, without reasoning and tool calls.
        finish_reason: why the answer ended.
        tool_calls: the tool calls in the answer, including malformed ones.
        prompt_tokens: the number of tokens in the prompt, with its images expanded.
        completion_tokens: the number of tokens that the policy sampled.
        turn: the number of the turn in its rollout, from 0; `Score.turn_rewards` uses it as the key.
    """

    message: Message
    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    turn: int = 0


class Model(Protocol):
    """The policy, as an environment sees it."""

    async def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Send the conversation to the policy, and return its answer.

        The images in `messages` are replaced by references, in place. `sampling` overrides keys of `engine.sampling`
        for this turn only; a key with the value None is left out.

        Raises:
            ChatArgumentError: `chat` has no such argument; the error says what to write instead.
            MessageError: the messages or the tools do not have the form that chat templates read, or are too large.
            SamplingError: a sampling key is unknown, or its value is not valid.
            ImageError: an image in the messages cannot be used; no image was replaced.
            ContextExhausted: the conversation is too long for the model. If nothing catches it, the rollout is
                unscored.
            EngineError: the engine cannot be reached, or its answer must not be used for training.
        """
        ...

    def endpoint(
        self,
        *,
        root_kinds: RootRule | None = None,
        socket: EndpointSocket | None = None,
        accept_reward: bool = False,
    ) -> AbstractAsyncContextManager[Endpoint]:
        """Open an address at which an agent program calls the policy; see `rollout.environments.endpoint`.

        Args:
            root_kinds: replaces the rule that says which of the program's conversations are auxiliary or of a
                sub-agent.
            socket: a unix socket at which the gateway listens for this endpoint alone.
            accept_reward: whether the program may send its own reward, as `endpoint.posted_reward`.
        """
        raise EndpointUnavailable("this model has no gateway, so model.endpoint() cannot be used with it.")

    def artifacts_directory(self) -> Path:
        """Return a directory for files that people read later, such as logs or videos. It exists for this attempt.

        It is in the run's directory, and is created when it is first asked for. Files in it are not part of the
        trajectory.
        """
        raise ArtifactsUnavailable("this model belongs to no run, so it has no directory for artifacts.")


_NO_RESOURCES = object()


class Environment(abc.ABC):
    """The base class of all environments. The YAML names a class as `package.module:Class`.

    Attributes:
        Settings: the class of the YAML's section `environment`.
        Tasks: the class of the YAML's section `tasks`.
        scoring_method: the name of the method that returns the score, for errors about the score.
        settings: the values of the section `environment`.
    """

    Settings: ClassVar[type[EnvironmentSettings]] = EnvironmentSettings
    Tasks: ClassVar[type[TaskSettings]] = TaskSettings
    scoring_method: ClassVar[str] = "run"

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings

    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: Any) -> AsyncIterator[Any]:
        """Make expensive resources once for each worker process, and yield them as `shared_resources` of all instances.

        The worker enters this context before its first order, and leaves it after it has drained. If the context raises
        an error, the worker ends.
        """
        yield None

    @classmethod
    def check_machine(cls, settings: Any) -> str | None:
        """Check that this machine has what the environment needs, such as a program; return what was found, or None.

        `rollout doctor` shows the text. `rollout run` and `rollout launch` call it before they play, and each worker
        calls it in a thread before its first order.

        Raises:
            ConfigurationError: something is missing; the error says what to install or to change.
        """
        return None

    @classmethod
    @asynccontextmanager
    async def admission(cls, settings: Any, shared_resources: Any) -> AsyncIterator[None]:
        """Wait until this machine can play another rollout. A worker is in this context while it plays a rollout.

        The wait counts for no time limit. By default there is none, and `worker.concurrency` alone counts.
        """
        yield

    @property
    def shared_resources(self) -> Any:
        """The resources that `shared` yielded; use them in `run`, `reset`, `step` and `close`.

        Raises:
            SharedResourcesMissing: it is used in `__init__` or `tasks`, which are also called where no rollout is
                played.
        """
        if self._shared_resources is _NO_RESOURCES:
            raise SharedResourcesMissing(
                f"{type(self).__name__}.shared_resources is not set yet; use it in `run`, `reset` or `step`, not in "
                "`__init__` or `tasks`."
            )
        return self._shared_resources

    @shared_resources.setter
    def shared_resources(self, resources: Any) -> None:
        self._shared_resources = resources

    _shared_resources: Any = _NO_RESOURCES

    def close(self) -> Awaitable[None] | None:
        """Release the resources of this attempt; write it as `def` or as `async def`.

        The worker calls it once after every attempt, also after an error, and waits at most five seconds. If it fails,
        the worker logs a warning, and the result of the rollout does not change. An instance that plays nothing is not
        closed.
        """
        return None

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """Yield all tasks of a run in order. By default, there are `count` tasks that differ only in their seeds."""
        rng = random.Random(tasks.seed)  # noqa: S311 - reproducible, not secret
        for index in range(tasks.count):
            yield Task(id=f"{index:06d}", index=index, seed=rng.getrandbits(63))

    def check_task(self, task: Task) -> None:
        """Check that a task has what the environment needs. By default, any task is good.

        `rollout doctor`, `rollout run` and `rollout launch` call it for the first tasks, before they play. An instance
        that checks tasks plays none.

        Raises:
            ConfigurationError: the task lacks something; the error says what.
        """
        return

    @abc.abstractmethod
    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout, and return its score. Errors other than `Retry` and `ContextExhausted` end it as failed."""


def change_score(score: Score, **changes: Any) -> Score:
    """Return a copy of a score with other values of some fields. With named rewards, the reward is computed again."""
    if score.rewards:
        changes["reward"] = None
    return replace(score, **changes)


class WrongReturn(RolloutError):
    """A method or a tool returned a value that cannot be used; the error says what to return."""


def describe_method(environment: Environment | type[Environment], name: str) -> str:
    """Return the name of a method with its file and line, for an error about its result."""
    environment_class = environment if isinstance(environment, type) else type(environment)
    code = getattr(inspect.unwrap(getattr(environment_class, name)), "__code__", None)
    where = "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"
    return f"{environment_class.__name__}.{name}{where}"
