"""Checks an environment before it plays: its class, one instance, and what it needs of this machine."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from rollout.environments.base import Environment, describe_method
from rollout.environments.multi_turn import MultiTurnEnvironment
from rollout.errors import ConfigurationError, describe_user_error
from rollout.records.messages import MessageError
from rollout.records.tools import require_tools
from rollout.records.wrong_types import describe_wrong_type


class EnvironmentUnusable(ConfigurationError):
    """An instance of an environment's class cannot be created, or declares wrong tools."""


class MachineCheckFailed(ConfigurationError):
    """`check_machine` of an environment's class raised an unexpected error, or returned something wrong."""


def class_problem(loaded_class: object) -> str | None:
    """Return why this object cannot be the class of an environment, or None if it can be one."""
    if not (isinstance(loaded_class, type) and issubclass(loaded_class, Environment)):
        return "is not a subclass of rollout.Environment"
    if missing := sorted(loaded_class.__abstractmethods__):
        return f"does not define {' and '.join(missing)}"
    first_methods = ("reset", "step", "truncated") if issubclass(loaded_class, MultiTurnEnvironment) else ()
    for name in dict.fromkeys((*first_methods, loaded_class.scoring_method)):
        method = inspect.getattr_static(loaded_class, name)
        if any(map(inspect.isasyncgenfunction, _layers(method))):
            return f"has a method {name} with a `yield`, which makes it a generator; use `return` instead"
        if not any(map(inspect.iscoroutinefunction, _layers(method))):
            return f"has a method {name} that is not a coroutine; write `async def {name}`"
    shared = inspect.getattr_static(loaded_class, "shared")
    if isinstance(shared, classmethod) and inspect.iscoroutinefunction(inspect.unwrap(shared.__func__)):
        return "has a method shared without a `yield`; write `yield resources` where it has `return`"
    if not isinstance(shared, classmethod) or inspect.isasyncgenfunction(shared.__func__):
        return (
            "has a method shared that is not an asynchronous context manager of the class; write `@classmethod` and "
            "`@asynccontextmanager`, in this order, above `async def shared(cls, settings)`"
        )
    check = inspect.getattr_static(loaded_class, "check_machine")
    if not isinstance(check, classmethod):
        return (
            "has a method check_machine that is not one of the class; write `@classmethod` above "
            "`def check_machine(cls, settings)`"
        )
    if any(map(inspect.iscoroutinefunction, _layers(check.__func__))):
        return "has a method check_machine that is a coroutine; write `def check_machine`, because a thread calls it"
    if any(map(inspect.iscoroutinefunction, _layers(inspect.getattr_static(loaded_class, "check_task")))):
        return "has a method check_task that is a coroutine; write `def check_task`"
    return None


def require_usable(new_environment: Callable[[], Environment], class_path: str) -> None:
    """Make one instance, as every rollout does, and check the tools that it declares.

    Raises:
        EnvironmentUnusable: the instance cannot be created, or its tools are wrong. The message has the user's lines.
    """
    try:
        environment = new_environment()
        tools = environment.tools if isinstance(environment, MultiTurnEnvironment) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EnvironmentUnusable(f"{class_path} cannot be created: {describe_user_error(error)}") from error
    try:
        require_tools(tools, f"{class_path}.tools")
    except MessageError as error:
        raise EnvironmentUnusable(str(error)) from None


def check_machine(environment_class: type[Environment], settings: object) -> str | None:
    """Check that this machine has what an environment needs; return what `check_machine` of its class found.

    Raises:
        ConfigurationError: something is missing, or `check_machine` failed. The message then has the user's lines.
    """
    method = describe_method(environment_class, "check_machine")
    try:
        found: object = environment_class.check_machine(settings)
    except (ConfigurationError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise MachineCheckFailed(f"{method} failed: {describe_user_error(error)}") from error
    if found is not None and not isinstance(found, str):
        raise MachineCheckFailed(
            f"{method} returned {describe_wrong_type(found)}; return a text that says what was found, or None, and "
            "raise rollout.errors.ConfigurationError if something is missing."
        )
    return found


def _layers(method: Any) -> Iterator[Any]:
    """Yield a method and the functions inside it: those that a decorator, a partial or a callable object wraps."""
    while method is not None:
        yield method
        if isinstance(method, functools.partial | functools.partialmethod):
            method = method.func
        elif hasattr(method, "__wrapped__"):
            method = method.__wrapped__
        else:
            method_of_class = inspect.getattr_static(type(method), "__call__", None)
            method = method_of_class if inspect.isfunction(method_of_class) else None
