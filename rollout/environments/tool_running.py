"""Runs the tool calls of one answer at the same time, each with a time limit, and makes a message from each result.

If a call fails, the model reads the error, and the worker's log has the traceback. Only errors of this package end the
attempt, because the policy cannot prevent them. Examples are `Retry`, a judge that refuses a question, and a tool that
returns a value of a wrong type.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import anyio
import structlog

from rollout.environments.own_threads import Raised, run_in_own_thread
from rollout.environments.tool_results import Content, ResultTooLarge, make_content
from rollout.environments.tools import ArgumentsInvalid, Tool
from rollout.errors import RolloutError, describe_user_error, error_text, flatten_exceptions, printable_error
from rollout.records.messages import Message, ToolCall
from rollout.records.wrong_types import show_value

log = structlog.get_logger()

_MAX_RUNNING = 64
"""The limit for calls of one answer that run at the same time. A policy may write thousands, each with a thread."""
_CLEANUP_TIMEOUT = 2.0
"""The time that a cancelled tool has to clean up, in seconds; a worker gives its environment more than this."""
_MAX_ERROR_CHARS = 1000
_MAX_ERRORS = 3
_MAX_LOGGED_CHARS = 5000
_UNKNOWN_NAME = "unknown"
"""The tool name in the answer to a call whose name could not be parsed. Some chat templates write this name."""


class _CallRefused(Exception):
    """No tool ran, or the tool took too long; the model reads this text."""


class _ToolFailed(Exception):
    """A tool raised an error; the model reads this text."""


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """The answer to one tool call.

    Attributes:
        message: the tool message.
        failed: whether the message contains an error instead of a result.
    """

    message: Message
    failed: bool


@dataclass(frozen=True, slots=True)
class ToolRunner:
    """Runs the tools of one environment.

    Attributes:
        tools: the tools by their names.
        environment: the `self` of tools that are methods.
        timeout: the time limit for one call, in seconds, for tools without their own `timeout`.
        max_result_chars: the limit for the characters of a result that the model gets.
    """

    tools: Mapping[str, Tool[..., Any]]
    environment: object
    timeout: float
    max_result_chars: int

    async def answer(self, calls: Sequence[ToolCall]) -> list[AnsweredCall]:
        """Run all calls of an answer at the same time, and return a message for each call, in the same order.

        Raises:
            RolloutError: a tool raised such an error, for example `Retry`; calls that still run are cancelled.
            WrongReturn: a tool returned a value that a message cannot contain.
        """
        free_slots = asyncio.Semaphore(_MAX_RUNNING)
        tasks = [asyncio.create_task(self._answer_call(call, free_slots)) for call in calls]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel_unfinished(tasks, 2 * _CLEANUP_TIMEOUT)
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for error in filter(None, errors):
            raise error
        return [task.result() for task in tasks]

    async def _answer_call(self, call: ToolCall, free_slots: asyncio.Semaphore) -> AnsweredCall:
        content: Content
        failed = True
        try:
            content = await self._run_call(call, free_slots)
            failed = False
        except (_CallRefused, ArgumentsInvalid, ResultTooLarge) as refusal:
            content = f"Error: {refusal}."
        except _ToolFailed as failure:
            content = f"Error: {failure}"
        name = call.name or _UNKNOWN_NAME
        return AnsweredCall({"role": "tool", "tool_call_id": call.id, "name": name, "content": content}, failed)

    async def _run_call(self, call: ToolCall, free_slots: asyncio.Semaphore) -> Content:
        if call.error is not None:
            raise _CallRefused(f"this call cannot be read ({call.error}), so no tool ran; write it again")
        tool = self.tools.get(call.name)
        if tool is None:
            raise _CallRefused(f"there is no tool {show_value(call.name)}; the tools are {', '.join(self.tools)}")
        timeout = self.timeout if tool.timeout is None else tool.timeout
        async with free_slots:
            task = asyncio.create_task(self._run_tool(tool, call.arguments))
            try:
                await asyncio.wait([task], timeout=timeout)
                is_late = not task.done()
            finally:
                if await _cancel_unfinished([task], _CLEANUP_TIMEOUT):
                    log.warning("a tool ignores its cancellation and still runs", tool=tool.name)
        if is_late:
            log.warning("a tool did not end in time", tool=tool.name, timeout=timeout)
            raise _CallRefused(f"{tool.name} did not end within {timeout:g} s")
        result = Raised(RuntimeError("the tool cancelled itself")) if task.cancelled() else task.result()
        if isinstance(result, Raised):
            raise _ToolFailed(_error_for_model(result.error, tool))
        return result

    async def _run_tool(self, tool: Tool[..., Any], arguments: Mapping[str, Any]) -> Content | Raised:
        """Run a tool, and return the content of its message or the error that it raised."""
        try:
            parsed = tool.parse_arguments(arguments)
            environment = (self.environment,) if tool.is_method else ()
            if inspect.iscoroutinefunction(tool.function):
                result = await tool.function(*environment, **parsed)
            else:
                result = await run_in_own_thread(f"tool {tool.name}", partial(tool.function, *environment, **parsed))
            if isinstance(result, Raised):
                return result
            return make_content(result, f"the tool {tool.where}", max_chars=self.max_result_chars)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - an error of a tool ends only its call
            return Raised(error)


async def _cancel_unfinished(tasks: Sequence["asyncio.Task[Any]"], seconds: float) -> bool:
    """Cancel the tasks that still run, wait up to `seconds`, and return whether a task still runs then."""
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        with anyio.CancelScope(shield=True):
            await asyncio.wait(unfinished, timeout=seconds)
    return not all(task.done() for task in unfinished)


def _error_for_model(error: BaseException, tool: Tool[..., Any]) -> str:
    """Return the text of an error for the model, and log the traceback.

    Raises:
        BaseException: the error is not an error of this call, so it ends the attempt.
    """
    if isinstance(error, _CallRefused | ArgumentsInvalid | ResultTooLarge):
        raise error
    try:
        error = printable_error(error)
        leaf_errors = list(flatten_exceptions(error))
    except BaseException:  # noqa: BLE001 - the `__str__` of a user's exception may raise anything
        error = RuntimeError(f"a {type(error).__name__} that cannot be printed")
        leaf_errors = [error]
    others = [leaf for leaf in leaf_errors if not isinstance(leaf, asyncio.CancelledError)]
    for leaf in others:
        if not isinstance(leaf, Exception | SystemExit | KeyboardInterrupt | GeneratorExit):
            raise leaf  # the exception with which a worker's watchdog interrupts code
    if others and all(isinstance(leaf, RolloutError) for leaf in others):
        raise others[0]
    log.warning("a tool raised an error", tool=tool.name, exception=_describe_for_log(error))
    texts = [f"{type(leaf).__name__}: {error_text(leaf)}" for leaf in islice(leaf_errors, _MAX_ERRORS)]
    text = " ".join("; ".join(texts).split())
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]}…"


def _describe_for_log(error: BaseException) -> str:
    try:
        return describe_user_error(error).strip()[-_MAX_LOGGED_CHARS:]
    except BaseException:  # noqa: BLE001 - an exception of a user's code may raise anything here, SystemExit included
        return error_text(error)
