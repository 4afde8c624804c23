"""The three ways to score the work of a program: a function, the output of a command, and the program's own reward.

The function and the command run when the program has ended. Neither gets the environment variables of the program, so
neither sees its key.
"""

import asyncio
import inspect
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from rollout.environments.base import Score, WrongReturn
from rollout.environments.endpoint import PostedReward, Transcript
from rollout.environments.own_threads import Raised, run_in_own_thread
from rollout.environments.user_objects import ImportRefused, import_object, is_object_path
from rollout.errors import ConfigurationError, RolloutError, error_text, flatten_exceptions
from rollout.records.task import Task
from rollout.records.wrong_types import describe_wrong_type, show_value

_PARAMETERS = ("task", "work", "transcript", "exit_code")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LINE_END = re.compile(r"[\r\n]")
_EXPECTED = (
    'expected a number, {"reward": 1.0}, or {"rewards": {"NAME": 1.0}} as the last line; "weights": {"NAME": 0.5} and '
    '"metrics": {"NAME": 1.0} may be added'
)
_KEYS = frozenset({"reward", "rewards", "weights", "metrics"})


class ScoreFunctionUnusable(ConfigurationError):
    """The function that scores cannot be imported, or cannot be called with the four arguments."""


class ScoreOutputError(RolloutError):
    """The last line that a score command printed is no score."""


class ScoreFunctionFailed(RolloutError):
    """The function that scores raised an error."""


class RewardMissing(RolloutError):
    """The program scores itself, but it sent no reward."""


@dataclass(frozen=True, slots=True)
class ScoreFunction:
    """A function of the user that scores the work of a program. It is a coroutine function or a plain function.

        def right_answer(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
            return float((work / "answer.txt").read_text() == task.data["answer"])

    Attributes:
        path: its path in the YAML, as `package.module:function`.
        function: the function.
    """

    path: str
    function: Callable[..., Any] = field(repr=False)

    @classmethod
    def load(cls, path: str, directory: Path) -> Self:
        """Import the function. Its module may be in this directory, the one of the YAML file.

        Raises:
            ScoreFunctionUnusable: it cannot be imported or called.
        """
        if not is_object_path(path):
            raise ScoreFunctionUnusable(f"environment.score: expected package.module:function, found {path!r}.")
        try:
            function = import_object(path, str(directory))
        except ImportRefused as error:
            end = "" if str(error).endswith("?") or "\n" in str(error) else "."
            raise ScoreFunctionUnusable(f"environment.score: {error}{end}") from error
        if (problem := _problem(function)) is not None:
            arguments = ", ".join(_PARAMETERS)
            raise ScoreFunctionUnusable(
                f"environment.score: {path} {problem}; expected a function that is called with ({arguments})."
            )
        assert callable(function)
        return cls(path, function)

    async def call(self, task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
        """Score the work of a program that has ended. A plain function runs in a thread.

        Args:
            task: the task.
            work: the work directory of the program.
            transcript: what the program has played.
            exit_code: the exit code of the program, or minus the number of the signal that ended it.

        Raises:
            WrongReturn: the function returned neither a score nor a finite number.
            ScoreFunctionFailed: it raised an error that is none of this package.
        """
        call = partial(self.function, task, work, transcript, exit_code)
        try:
            if inspect.iscoroutinefunction(self.function):
                returned = await call()
            else:
                returned = await run_in_own_thread(f"score {self.path}", call)
            if isinstance(returned, Raised):
                raise returned.error
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if any(isinstance(leaf, RolloutError) for leaf in flatten_exceptions(error)):  # such as Retry
                raise
            raise ScoreFunctionFailed(
                f"the score {self.path} raised {type(error).__name__}: {error_text(error)}"
            ) from error
        return self._as_score(returned)

    def _as_score(self, returned: object) -> Score:
        if isinstance(returned, Score):
            return returned
        if not isinstance(returned, numbers.Real):
            found = describe_wrong_type(returned)
        elif (reward := _finite(returned)) is None:
            found = show_value(returned)
        else:
            return Score(reward=reward)
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        where = "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"
        raise WrongReturn(f"{self.path}{where} returned {found}; write `return Score(reward=…)`, or return a number.")


def parse_score_output(text: str) -> Score:
    """Return the score in the last line of a score command's output that is not empty.

    Raises:
        ScoreOutputError: the line is neither a finite number nor an object of JSON with a score.
    """
    line = _LINE_END.split(text.rstrip())[-1].strip()
    if not line:
        raise ScoreOutputError(f"the score command printed nothing; {_EXPECTED}.")
    if _NUMBER.fullmatch(line):
        return Score(reward=_require_number(line, "the number", float(line)))
    try:
        printed = json.loads(line, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as error:
        repeated = f" ({error})" if isinstance(error, _RepeatedKey) else ""
        raise _wrong_output(line, f"is neither a number nor an object of JSON{repeated}") from None
    if not isinstance(printed, dict):
        raise _wrong_output(line, "is neither a number nor an object of JSON")
    if unknown := printed.keys() - _KEYS:
        raise _wrong_output(line, f"has the unknown key {show_value(min(unknown))}")
    if ("reward" in printed) == ("rewards" in printed):
        raise _wrong_output(line, "needs either reward or rewards, not both")
    metrics = _require_numbers(line, "metrics", printed.get("metrics", {}))
    if "reward" in printed:
        if "weights" in printed:
            raise _wrong_output(line, "has weights without rewards")
        return Score(reward=_require_number(line, "reward", printed["reward"]), metrics=metrics)
    rewards = _require_numbers(line, "rewards", printed["rewards"])
    weights = _require_numbers(line, "weights", printed.get("weights", {}))
    if not rewards:
        raise _wrong_output(line, "has no reward in rewards")
    if unknown := weights.keys() - rewards.keys():
        raise _wrong_output(line, f"has a weight for {show_value(min(unknown))}, but no reward with this name")
    score = Score(rewards=rewards, weights=weights, metrics=metrics)
    if not math.isfinite(score.reward):
        raise _wrong_output(line, "has rewards whose sum is not finite")
    return score


def score_from_posted(posted: PostedReward | None) -> Score:
    """Return the score that a program sent itself.

    Raises:
        RewardMissing: it sent none.
    """
    if posted is None:
        raise RewardMissing(
            "the program sent no reward, but environment.score is `program`. It must send `POST "
            "$OPENAI_BASE_URL/reward` with its key before it ends. Or set environment.score to a function or a command."
        )
    if posted.reward is None:
        return Score(rewards=posted.rewards, metrics=posted.metrics)
    return Score(reward=posted.reward, metrics=posted.metrics)


def _problem(function: object) -> str | None:
    """Return why an object cannot score, or None if it can."""
    if isinstance(function, type):
        return "is a class"
    if not callable(function):
        return f"is {describe_wrong_type(function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "has a `yield`, which makes it a generator"
    with suppress(ValueError):  # a function of a compiled module may have no signature
        try:
            inspect.signature(function).bind(*_PARAMETERS)
        except TypeError as error:
            return f"cannot be called ({error})"
    return None


def _finite(value: object) -> float | None:
    """Return a real number as a float, or None if it is not finite."""
    try:
        number = float(value)  # type: ignore[arg-type]  # numbers.Real has __float__
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


class _RepeatedKey(ValueError):
    """An object of JSON has a key twice."""


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RepeatedKey("it has a key twice")
    return values


def _require_numbers(line: str, key: str, values: object) -> Mapping[str, float]:
    if not isinstance(values, dict):
        raise _wrong_output(line, f"has {key} that are {describe_wrong_type(values)} and not an object of JSON")
    return {name: _require_number(line, f"{key}.{name}", value) for name, value in values.items()}


def _require_number(line: str, name: str, value: object) -> float:
    number = _finite(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None:
        raise _wrong_output(line, f"has a wrong value: {show_value(name)} is {show_value(value)}, not a finite number")
    return number


def _wrong_output(line: str, problem: str) -> ScoreOutputError:
    return ScoreOutputError(f"the last line of the score command {problem}: {show_value(line)}; {_EXPECTED}.")
