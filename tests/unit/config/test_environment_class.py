"""The checks of an environment's class before it plays."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rollout.config.environment_class import (
    EnvironmentUnusable,
    MachineCheckFailed,
    check_machine,
    class_problem,
    require_usable,
)
from rollout.environments.base import Environment, EnvironmentSettings, Model, Score
from rollout.environments.calculator import CALCULATE_TOOL
from rollout.environments.multi_turn import MultiTurnEnvironment
from rollout.errors import ConfigurationError
from rollout.records.task import Task
from rollout.texts import is_well_formed


async def coroutine(*_: object) -> Score:
    return Score(1.0)


def function(*_: object) -> Score:
    return Score(1.0)


async def generator(*_: object) -> Any:
    yield Score(1.0)


def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(wrapped)
    def call(*arguments: object) -> Any:
        return wrapped(*arguments)

    return call


class CallableCoroutine:
    async def __call__(self, *_: object) -> Score:
        return Score(1.0)


class CallableFunction:
    def __call__(self, *_: object) -> Score:
        return Score(1.0)


def class_with(run: object) -> type:
    return type("Coin", (Environment,), {"run": run})


COROUTINES = {
    "coroutine": coroutine,
    "decorated": decorate(coroutine),
    "twice": decorate(decorate(coroutine)),
    "static": staticmethod(coroutine),
    "class": classmethod(coroutine),
    "partial": functools.partial(coroutine),
    "partialmethod": functools.partialmethod(coroutine),
    "decorated partial": decorate(functools.partial(coroutine)),
    "object": CallableCoroutine(),
}


@pytest.mark.parametrize("run", COROUTINES.values(), ids=COROUTINES)
def test_a_run_that_returns_a_coroutine_is_accepted_in_every_form(run: object) -> None:
    assert class_problem(class_with(run)) is None


@pytest.mark.parametrize(
    "run",
    [
        function,
        decorate(function),
        staticmethod(function),
        functools.partial(function),
        functools.partialmethod(function),
        CallableFunction(),
        None,
    ],
    ids=["function", "decorated", "static", "partial", "partialmethod", "object", "nothing"],
)
def test_a_run_that_returns_no_coroutine_is_refused_in_every_form(run: object) -> None:
    assert class_problem(class_with(run)) == "has a method run that is not a coroutine; write `async def run`"


@pytest.mark.parametrize(
    "run", [generator, decorate(generator), staticmethod(generator)], ids=["plain", "decorated", "static"]
)
def test_a_run_with_a_yield_is_refused(run: object) -> None:
    assert class_problem(class_with(run)) == (
        "has a method run with a `yield`, which makes it a generator; use `return` instead"
    )


@pytest.mark.parametrize(
    ("shared", "is_usable"),
    [
        (classmethod(contextlib.asynccontextmanager(generator)), True),
        (classmethod(generator), False),
        (contextlib.asynccontextmanager(generator), False),
        (generator, False),
    ],
    ids=["both decorators", "no context manager", "not of the class", "no decorator"],
)
def test_a_shared_without_its_decorators_is_refused(shared: object, is_usable: bool) -> None:
    problem = class_problem(type("Coin", (Environment,), {"run": coroutine, "shared": shared}))
    assert (problem is None) == is_usable
    assert problem is None or "write `@classmethod` and `@asynccontextmanager`, in this order, above" in problem


def test_a_shared_without_a_yield_is_refused() -> None:
    returning: Any = coroutine
    shared = classmethod(contextlib.asynccontextmanager(returning))
    problem = class_problem(type("Coin", (Environment,), {"run": coroutine, "shared": shared}))
    assert problem == "has a method shared without a `yield`; write `yield resources` where it has `return`"


def test_a_truncated_that_is_not_a_coroutine_is_refused() -> None:
    methods = {"reset": coroutine, "step": coroutine, "truncated": lambda self, conversation: None}
    problem = class_problem(type("Coin", (MultiTurnEnvironment,), methods))
    assert problem == "has a method truncated that is not a coroutine; write `async def truncated`"


class Broken(Environment):
    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        self.words = {"a": 1}["b"]

    async def run(self, task: Task, model: Model) -> Score:
        raise NotImplementedError


def unusable(made: type[Environment]) -> str:
    with pytest.raises(EnvironmentUnusable) as refused:
        require_usable(lambda: made(EnvironmentSettings()), f"my:{made.__name__}")
    return str(refused.value)


def test_an_error_in_init_is_reported_with_its_line() -> None:
    message = unusable(Broken)
    assert message.startswith("my:Broken cannot be created:")
    assert 'test_environment_class.py", line' in message
    assert 'self.words = {"a": 1}["b"]' in message
    assert message.endswith("KeyError: 'b'")


@pytest.mark.parametrize("error", [GeneratorExit(), SystemExit(0), ValueError("cut \ud83d")], ids=repr)
def test_an_environment_whose_init_raises_is_refused(error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    message = unusable(type("Broken", (Environment,), {"__init__": fail, "run": Broken.run}))
    assert type(error).__name__ in message
    assert is_well_formed(message)


def with_tools(tools: Any) -> type[Environment]:
    return type("Tools", (MultiTurnEnvironment,), {"tools": tools, "reset": coroutine, "step": coroutine})


def test_valid_tools_are_accepted() -> None:
    no_parameters = {"type": "function", "function": {"name": "look"}}
    for tools in (None, (), [CALCULATE_TOOL], (CALCULATE_TOOL, no_parameters)):
        require_usable(functools.partial(with_tools(tools), EnvironmentSettings()), "my:Tools")


FUNCTION: Mapping[str, Any] = CALCULATE_TOOL["function"]


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (CALCULATE_TOOL, "my:Tools.tools is a dict; expected a list of tools: ["),
        ("calculate", "my:Tools.tools is a str; expected a list of tools: ["),
        ([CALCULATE_TOOL, FUNCTION], 'my:Tools.tools: tools[1] has no "type": "function"; expected {'),
        ([{**CALCULATE_TOOL, "type": "tool"}], "my:Tools.tools: tools[0] has the type 'tool'; expected {"),
        ([{"type": "function", **FUNCTION}], 'my:Tools.tools: tools[0] has no "function"; expected {'),
        ([{"type": "function", "function": "f"}], 'my:Tools.tools: tools[0] has a "function" that is a str; expected'),
        ([{"type": "function", "function": {}}], 'my:Tools.tools: tools[0] has no "name" in its "function"; expected'),
        ([{"type": "function", "function": {"name": ""}}], "my:Tools.tools: tools[0] has a \"name\" that is ''"),
        (
            [{"type": "function", "function": {"name": "look", "parameters": ["n"]}}],
            'tools[0] (look) has "parameters" that are a list, not a JSON schema; expected {',
        ),
        ([function], "my:Tools.tools: tools[0] is a function; expected {"),
    ],
)
def test_the_error_for_a_wrong_tool_names_its_place(tools: Any, problem: str) -> None:
    assert problem in unusable(with_tools(tools))


def test_an_error_in_a_property_tools_is_reported() -> None:
    assert "ZeroDivisionError" in unusable(with_tools(property(lambda self: 1 / 0)))


def class_that_checks(check: object) -> type[Environment]:
    return type("Coin", (Environment,), {"run": coroutine, "check_machine": check})


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (classmethod(lambda cls, settings: None), None),
        (lambda self, settings: None, "write `@classmethod` above `def check_machine(cls, settings)`"),
        (staticmethod(lambda settings: None), "write `@classmethod` above `def check_machine(cls, settings)`"),
        (classmethod(coroutine), "write `def check_machine`, because a thread calls it"),
        (classmethod(decorate(coroutine)), "write `def check_machine`, because a thread calls it"),
    ],
    ids=["class", "instance", "static", "coroutine", "decorated coroutine"],
)
def test_a_check_of_the_machine_must_be_a_plain_method_of_the_class(check: object, problem: str | None) -> None:
    found = class_problem(class_that_checks(check))
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem in found


def test_a_check_of_a_task_must_be_a_plain_method() -> None:
    found = class_problem(type("Coin", (Environment,), {"run": coroutine, "check_task": coroutine}))
    assert found == "has a method check_task that is a coroutine; write `def check_task`"


def test_the_finding_of_a_check_of_the_machine_is_returned() -> None:
    environment = class_that_checks(classmethod(lambda cls, settings: f"found with {type(settings).__name__}"))
    assert check_machine(environment, EnvironmentSettings()) == "found with EnvironmentSettings"


def test_what_is_missing_is_said_in_the_words_of_the_environment() -> None:
    def missing(cls: type, settings: object) -> None:
        raise ConfigurationError("install the compass")

    with pytest.raises(ConfigurationError, match=r"^install the compass$"):
        check_machine(class_that_checks(classmethod(missing)), EnvironmentSettings())


@pytest.mark.parametrize("error", [OSError("no such device"), SystemExit(3), RecursionError()])
def test_an_error_in_a_check_of_the_machine_shows_the_line_of_the_user(error: BaseException) -> None:
    def breaks(cls: type, settings: object) -> None:
        raise error

    with pytest.raises(MachineCheckFailed) as raised:
        check_machine(class_that_checks(classmethod(breaks)), EnvironmentSettings())
    assert "Coin.check_machine" in str(raised.value)
    assert f'{__file__}", line' in str(raised.value)
    assert "raise error" in str(raised.value)


def test_a_check_of_the_machine_that_returns_no_text_is_refused() -> None:
    with pytest.raises(MachineCheckFailed, match="return a text that says what was found"):
        check_machine(class_that_checks(classmethod(lambda cls, settings: True)), EnvironmentSettings())
