"""The base class of environments with tools. The model calls tools until it gives an answer without a call.

    class Handbook(ToolEnvironment):
        @tool
        async def search(self, query: str) -> str:
            '''Search the handbook for a query.'''
            return await self.index.find(query)

        async def reset(self, task: Task) -> list[Message]:
            return [{"role": "user", "content": task.data["question"]}]

        async def score(self, reply: Reply) -> Score:
            return Score(float(reply.text == self.answer))

Every method with `@tool` is a tool of the environment. List plain functions with `@tool` in `functions`.
Functions that are not coroutines run in threads, and the calls of one answer run at the same time. If two tools change
the same state, use a lock, or write them as coroutines.

A call that cannot be parsed is answered with a tool message, as every other call is. In the conversation, such a call
is part of the assistant's text, not of its `tool_calls`. Every shipped renderer can still bridge the tool message. A
user message would be worse: many renderers then drop the reasoning before it, and `gemma4` refuses a user message after
the results of other calls. One gap is left: if no call of an answer could be parsed, `gemma4` cannot render the whole
conversation again.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from pydantic import Field

from rollout.environments.base import EnvironmentSettings, Reply, Score, WrongReturn, change_score, describe_method
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.environments.tool_running import ToolRunner
from rollout.environments.tools import Tool, ToolUnusable
from rollout.records.endings import RolloutLimit
from rollout.records.wrong_types import describe_wrong_type


class ToolSettings(EnvironmentSettings):
    """The keys of a tool environment's section `environment`. Subclass it to add keys."""

    max_turns: int = Field(default=10, ge=1)
    """The limit for answers of the model; then it is scored."""
    tool_timeout: float = Field(default=60.0, gt=0)
    """The time limit for one tool call, in seconds."""
    max_result_chars: int = Field(default=20_000, ge=1)
    """The limit for the characters of a tool's result; the rest is cut off."""


class ToolEnvironment(MultiTurnEnvironment):
    """An environment with tools. Write `reset` and `score`; `step` runs the tools that the model calls.

    A score gets two more metrics. `tool_calls` is the number of calls that were answered; `tool_errors` is the number
    of calls that were answered with an error.

    To end a rollout from a tool, override `step`: call `await super().step(reply)`, and return `Turn(score=…)` if the
    tool has set a flag.

    Attributes:
        functions: tools that are not methods of this class.
        tools: the schemas of all tools; the class computes them itself.
    """

    Settings: ClassVar[type[EnvironmentSettings]] = ToolSettings
    settings: ToolSettings
    scoring_method: ClassVar[str] = "score"
    functions: ClassVar[Sequence[Tool[..., Any]]] = ()
    _tools_by_name: ClassVar[dict[str, Tool[..., Any]]] = {}
    _answer_count = 0
    _call_count = 0
    _error_count = 0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _check_class(cls)
        cls._tools_by_name = {}
        for tool in (*_find_methods(cls), *cls.functions):
            if not isinstance(tool, Tool):
                raise ToolUnusable(
                    f"{cls.__qualname__}.functions has {describe_wrong_type(tool)}; write `@tool` above the function."
                )
            if tool in cls.functions and tool.is_method:
                raise ToolUnusable(
                    f"{cls.__qualname__}.functions contains the method {tool!r}; list only functions outside of "
                    "classes."
                )
            if cls._tools_by_name.setdefault(tool.name, tool) is not tool:
                raise ToolUnusable(
                    f"{cls.__qualname__} has two tools with the name {tool.name!r}; write `@tool(name=…)` above one."
                )
        cls.tools = tuple(tool.schema for tool in cls._tools_by_name.values())

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        if not self._tools_by_name:
            raise ToolUnusable(
                f"{type(self).__qualname__} has no tools; write `@tool` above its methods, or list functions with "
                "`@tool` in `functions`."
            )

    @abstractmethod
    async def score(self, reply: Reply) -> Score:
        """Return the score of the rollout, after an answer without a call or after the last turn.

        The calls in the answer of the last turn, `reply.tool_calls`, were not run. If there are such calls and the
        score names no limit, the limit of the rollout is `turns`.
        """

    async def step(self, reply: Reply) -> Turn:
        """Run the calls of an answer, and return their results or the score."""
        self._answer_count += 1
        is_last = self._answer_count >= self.settings.max_turns
        if reply.tool_calls and not is_last:
            settings = self.settings
            runner = ToolRunner(self._tools_by_name, self, settings.tool_timeout, settings.max_result_chars)
            answered = await runner.answer(reply.tool_calls)
            self._call_count += len(answered)
            self._error_count += sum(each.failed for each in answered)
            return Turn([each.message for each in answered])
        score: object = await self.score(reply)
        if not isinstance(score, Score):
            raise WrongReturn(
                f"{describe_method(self, 'score')} returned {describe_wrong_type(score)}; write "
                "`return Score(reward=…)`."
            )
        if reply.tool_calls and score.limit == RolloutLimit.NONE:
            score = change_score(score, limit=RolloutLimit.TURNS)
        counts = {"tool_calls": float(self._call_count), "tool_errors": float(self._error_count)}
        return Turn(score=change_score(score, metrics={**counts, **score.metrics}))


_RESERVED_NAMES: Final = frozenset(dir(ToolEnvironment))
"""The names of all environments' attributes; a tool with such a name would replace the attribute."""


def _check_class(environment_class: type[ToolEnvironment]) -> None:
    name = environment_class.__qualname__
    if "tools" in vars(environment_class):
        raise ToolUnusable(
            f"{name} sets `tools`, but this is computed from its tools; list functions with `@tool` in `functions`."
        )
    functions: object = environment_class.functions
    if not isinstance(functions, list | tuple):
        raise ToolUnusable(f"{name}.functions is {describe_wrong_type(functions)}; expected a list of tools.")
    if not issubclass(environment_class.Settings, ToolSettings):
        raise ToolUnusable(
            f"{name}.Settings is {environment_class.Settings.__qualname__}, which has no max_turns; make it a subclass "
            "of rollout.ToolSettings."
        )


def unused_tools(environment_class: type) -> list[Tool[..., Any]]:
    """Return the tools outside of classes in the module of this class that no environment of the module uses."""
    module = sys.modules.get(environment_class.__module__)
    found = {
        id(value): value
        for value in vars(module).values()
        if isinstance(value, Tool) and getattr(value.function, "__module__", None) == environment_class.__module__
    }
    for value in list(vars(module).values()):
        if isinstance(value, type) and issubclass(value, ToolEnvironment):
            for used in value.functions:
                found.pop(id(used), None)
    return list(found.values())


def _find_methods(environment_class: type[ToolEnvironment]) -> Iterator[Tool[..., Any]]:
    """Yield the methods of a class that are tools, in the order of the code; a subclass may replace a tool."""
    attributes: dict[str, Any] = {}
    for base in reversed(environment_class.__mro__):
        attributes |= vars(base)
    for name, attribute in attributes.items():
        replaces_tool = any(isinstance(vars(base).get(name), Tool) for base in environment_class.__mro__)
        if replaces_tool and callable(attribute) and not isinstance(attribute, Tool):
            raise ToolUnusable(
                f"{environment_class.__qualname__}.{name} replaces a tool, but is not a tool itself; write `@tool` "
                f"above it, or `{name} = None` to remove the tool."
            )
        if isinstance(attribute, staticmethod | classmethod) and isinstance(attribute.__func__, Tool):
            raise ToolUnusable(
                f"the tool {environment_class.__qualname__}.{name} is a {type(attribute).__name__}; make it a method "
                "with `self`, or a function outside the class, and list that in `functions`."
            )
        if isinstance(attribute, Tool):
            if name in _RESERVED_NAMES:
                raise ToolUnusable(
                    f"the tool {environment_class.__qualname__}.{name} replaces an attribute of all environments; "
                    f"rename the method, and write `@tool(name={name!r})` to keep this name for the model."
                )
            yield attribute
