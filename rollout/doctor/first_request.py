"""Begins the first task of an environment, and reads its first request to the model: its messages and its tools.

No class says whether its environment has images, so a text-only model and an environment with images are only found
this way. The model never answers: the rollout is cancelled, and the environment is closed.
"""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import anyio

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from renderers_adapter.families import FAMILIES
from rollout.config.load import Config
from rollout.config.model_type import fitting_renderers
from rollout.doctor.results import CheckResult, CheckStatus, error_result
from rollout.environments.base import QUEUE_SOURCE, Environment, Model, Reply
from rollout.environments.endpoint import Endpoint, EndpointSocket, EndpointUnavailable, RootRule
from rollout.environments.program import Program
from rollout.errors import RolloutError, describe_user_error
from rollout.images.message_parts import find_image_parts
from rollout.records.messages import Message, canonicalise, require_conversation
from rollout.records.task import Task
from rollout.records.tools import require_tools
from rollout.tasks.orders import iter_orders

FIRST_REQUEST = "first request"
"""The subject of the check."""
_TIMEOUT = 20.0
_EXPENSIVE_METHODS = ("shared", "admission", "check_machine")


class NoFirstRequest(RolloutError):
    """The environment failed, or took too long, before it asked the model."""


class RequestNotSeen(NoFirstRequest):
    """A sound environment has not asked the model yet: it plays a program, or its beginning takes long."""


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The first request of an environment.

    Attributes:
        messages: the conversation; if `is_rendered`, in canonical form.
        tools: the schemas of the tools; None without tools.
        is_rendered: whether the renderer of the model writes it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    is_rendered: bool = False


def check_first_request(
    config: Config, adapter: RendererAdapter, *, live: bool
) -> tuple[CheckResult, FirstRequest | None]:
    """Render the first request of an environment with the renderer of a text-only model.

    Returns:
        The result, and the request; None if no task was begun.
    """
    if (reason := _reason_not_to_begin(config, live=live)) is not None:
        message = f"whether the environment sends images is not known: {reason}"
        return CheckResult(FIRST_REQUEST, message, CheckStatus.NOTHING), None
    try:
        request = ask_first_request(config)
    except RequestNotSeen as error:
        return CheckResult(FIRST_REQUEST, str(error), CheckStatus.NOTHING), None
    except RolloutError as error:
        return CheckResult(FIRST_REQUEST, str(error), CheckStatus.UNKNOWN), None
    try:
        require_conversation(request.messages)
        require_tools(request.tools, "chat(tools=…)")
        if images := find_image_parts(request.messages):
            return _image_result(config, images[0].message_index), request
        messages = [message.message for message in canonicalise(request.messages, ())]
        adapter.render(messages, request.tools)
        request = FirstRequest(messages, request.tools, is_rendered=True)
    except (RolloutError, AdapterError) as error:
        return error_result(FIRST_REQUEST, error), request
    count = f"{len(messages)} message{'s'[: len(messages) != 1]}"
    tools = "tools" if request.tools else "no tools"
    return CheckResult(FIRST_REQUEST, f"it is rendered: {count}, {tools}, no images"), request


def _image_result(config: Config, index: int) -> CheckResult:
    fitting = [name for name in fitting_renderers(config.model.path) if FAMILIES[name].geometry is not None]
    others = ", ".join(family.name for family in FAMILIES.values() if family.geometry is not None)
    fix = (
        f"set model.renderer to {' or '.join(fitting)}"
        if fitting
        else f"choose a model with images, and set model.renderer to the one of {others} that belongs to it"
    )
    return CheckResult(
        FIRST_REQUEST,
        f"messages[{index}] of {config.environment_class_path} contains an image, but the renderer "
        f"{config.model.renderer} accepts only text, so every rollout would fail",
        CheckStatus.BAD,
        f"{fix}. Or play an environment without images",
    )


def _reason_not_to_begin(config: Config, *, live: bool) -> str | None:
    """Return why doctor does not begin a task of this environment, or None if it may."""
    environment_class = config.environment_class
    if config.tasks.source == QUEUE_SOURCE:
        return "the tasks come from another program"
    if issubclass(environment_class, Program):
        return "only --agent plays the program"
    own = [name for name in _EXPENSIVE_METHODS if _overrides(environment_class, name)]
    if own and not live:
        return f"the environment has a method {own[0]}, so a task may be expensive; --live begins one"
    return None


def ask_first_request(config: Config) -> FirstRequest:
    """Begin the first task, and return its first request.

    Raises:
        NoFirstRequest: the environment failed, or took too long, before it asked the model.
        RolloutError: its shared resources cannot be opened, or it has no task.
    """
    from rollout.worker.leaving import run_leaving_behind

    orders = list(islice(iter_orders(config.new_environment, config.tasks), 1))
    if not orders:
        raise NoFirstRequest("there is no task to begin.")
    return run_leaving_behind(_ask(config, orders[0].task))


async def _ask(config: Config, task: Task) -> FirstRequest:
    from rollout.worker.resources import open_shared_resources

    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as artifacts:
        async with open_shared_resources(config.environment_class, config.environment_settings) as shared:
            environment = config.new_environment()
            environment.shared_resources = shared
            model = _SilentModel(Path(artifacts))
            playing = asyncio.ensure_future(environment.run(task, model))
            try:
                await asyncio.wait([playing, model.asked], timeout=_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
                return _result(environment, model, playing)
            finally:
                playing.cancel()
                await asyncio.wait({playing}, timeout=_TIMEOUT)
                await _close(environment)


def _result(environment: Environment, model: "_SilentModel", playing: "asyncio.Future[Any]") -> FirstRequest:
    name = type(environment).__name__
    if model.request is not None:
        return model.request
    if model.opens_endpoint:
        raise RequestNotSeen(f"{name} plays a program, so its requests are not known; --agent plays it.")
    if not playing.done():
        raise RequestNotSeen(f"{name} did not ask the model within {_TIMEOUT:g} s, so its requests are not known.")
    if (error := playing.exception()) is not None:
        raise NoFirstRequest(f"{name} failed before it asked the model: {describe_user_error(error)}") from error
    raise NoFirstRequest(f"{name} did not ask the model for its first task.")


async def _close(environment: Environment) -> None:
    """Close the environment as a worker does, and ignore what fails, because nothing was played."""
    with anyio.move_on_after(_TIMEOUT):
        try:
            closing = environment.close()
            if closing is not None:
                await closing
        except Exception:  # noqa: BLE001 - a user's method may raise any error; a run reports it
            return


class _SilentModel(Model):
    """A model that keeps its first request, and never answers.

    Attributes:
        request: the first request; None before it.
        asked: is done when there is a request.
        opens_endpoint: whether the environment tried to open an endpoint.
    """

    def __init__(self, artifacts: Path) -> None:
        self.request: FirstRequest | None = None
        self.opens_endpoint = False
        self.asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._never: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._artifacts = artifacts

    async def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Keep the first request, and wait for the end of the rollout."""
        if self.request is None:
            self.request = FirstRequest(messages, tools)
            self.asked.set_result(None)
        return await asyncio.shield(self._never)  # one of several calls may be cancelled

    def endpoint(
        self,
        *,
        root_kinds: RootRule | None = None,
        socket: EndpointSocket | None = None,
        accept_reward: bool = False,
    ) -> AbstractAsyncContextManager[Endpoint]:
        """Keep that the environment plays a program."""
        self.opens_endpoint = True
        raise EndpointUnavailable("doctor opens no endpoint, except with --agent.")

    def artifacts_directory(self) -> Path:
        """Return a directory that is removed afterwards."""
        return self._artifacts


def _overrides(environment_class: type[Environment], name: str) -> bool:
    return getattr(environment_class, name).__func__ is not getattr(Environment, name).__func__
