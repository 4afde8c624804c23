"""What a user writes: an environment is one class with one coroutine.

    class Guess(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            reply = await model.chat([{"role": "user", "content": "Heads or tails?"}])
            return Score(reward=float(reply.text.strip() == "heads"))

A new instance is made for every attempt at a rollout, so what `run` keeps on `self` belongs to this attempt alone.
`chat` may be called as often as the environment likes, with any conversation: extended, cut, compacted or forked. The
trace finds out what is already known, so an environment never handles tokens.
"""

import abc
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from rollout.records.messages import FinishReason, Message, ToolCall
from rollout.records.task import Task

QUEUE_SOURCE = "queue"
"""The value of `tasks.source` if somebody else puts the orders on the tasks queue."""


class EnvironmentSettings(BaseModel):
    """The `environment` section of the YAML, besides `class`. Subclass it to add keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _resolve_source(source: str | None, info: ValidationInfo) -> str | None:
    """Resolve a relative path, which is relative to the YAML file."""
    if source is None or source == QUEUE_SOURCE or "://" in source or not info.context:
        return source
    return str(Path(info.context["directory"], source).resolve())


class TaskSettings(BaseModel):
    """The `tasks` section of the YAML. Subclass it to add keys that describe the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str | None, AfterValidator(_resolve_source)] = Field(
        default=None,
        description="Where tasks come from, if not from the environment: .jsonl, .parquet, hf://owner/name, queue.",
    )
    count: int = Field(default=16, ge=1, description="How many different tasks; of a source, how many at most.")
    group_size: int = Field(default=4, ge=1, description="How many rollouts of each task; together they are a group.")
    seed: int = Field(default=0, ge=0, description="Every task's own seed is derived from this one.")


@dataclass(frozen=True, slots=True)
class Score:
    """How well a rollout went.

    Attributes:
        reward: the reward that the trainer uses; a finite number.
        metrics: further numbers by name; they are averaged over a run, and nothing trains on them.
    """

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the policy.

    Attributes:
        message: the answer as a message; append it to the conversation to continue from it.
        text: the text of the answer, without reasoning and tool calls.
        finish_reason: why the answer ended.
        tool_calls: the tool calls in the answer, malformed ones included.
        prompt_tokens: how many tokens the prompt had, with its images expanded.
        completion_tokens: how many tokens the policy sampled.
    """

    message: Message
    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Model(Protocol):
    """The policy, as an environment sees it."""

    async def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Ask for the next assistant message.

        Images inside `messages` are rewritten in place to references. `sampling` overrides keys of `engine.sampling`
        for this turn only.

        Raises:
            ImageError: a message holds an image that cannot be used; nothing was rewritten.
            ContextExhausted: the conversation is too long for the model. Not caught, it ends the rollout as truncated.
            EngineError: the engine cannot be reached, or its answer must not be trained on.
        """
        ...


class Environment(abc.ABC):
    """The base class of all environments, named in YAML as `package.module:Class`."""

    Settings: ClassVar[type[EnvironmentSettings]] = EnvironmentSettings
    Tasks: ClassVar[type[TaskSettings]] = TaskSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """Yield all tasks of a run in order: by default `count` tasks that differ only in their seed."""
        rng = random.Random(tasks.seed)  # noqa: S311 - reproducible, not secret
        for index in range(tasks.count):
            yield Task(id=f"{index:06d}", index=index, seed=rng.getrandbits(63))

    @abc.abstractmethod
    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout and score it. An exception that leaves this coroutine ends the rollout as failed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a multi-turn environment answers to a reply of the policy.

    Attributes:
        messages: the messages to add after the reply.
        score: the score, which ends the rollout; None: the rollout goes on.
    """

    messages: Sequence[Message] = ()
    score: Score | None = None


class MultiTurnEnvironment(Environment):
    """An environment with `reset` and `step`; the loop around the model is already written."""

    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = None

    @abc.abstractmethod
    async def reset(self, task: Task) -> Sequence[Message]:
        """Begin the rollout, and return the first messages."""

    @abc.abstractmethod
    async def step(self, reply: Reply) -> Turn:
        """Process the model's answer, and return the next messages or the final score."""

    @final
    async def run(self, task: Task, model: Model) -> Score:
        conversation = list(await self.reset(task))
        while True:
            reply = await model.chat(conversation, tools=self.tools)
            turn = await self.step(reply)
            if turn.score is not None:
                return turn.score
            conversation += [reply.message, *turn.messages]
