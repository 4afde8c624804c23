"""Plays the environment of a configuration once against the script, and returns what was seen.

All parts are those of a run: the environment, the session, the renderer and the gateway. Only the engine is a script,
and the records go to a queue in memory that nobody reads.
"""

import asyncio
import contextlib
import os
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import RendererPool
from rollout.api_keys import hide_keys
from rollout.config.load import Config
from rollout.doctor.agent.faults import Fault
from rollout.doctor.agent.observed import ObservedSession, ObservedTurn
from rollout.doctor.agent.proxy import AgentProxy, SeenRequest
from rollout.doctor.agent.script import AgentScript
from rollout.doctor.agent.scripted_client import ScriptedClient
from rollout.environments.base import Environment
from rollout.environments.endpoint import Endpoint, EndpointOptions
from rollout.environments.program_errors import LAST_LINES
from rollout.errors import RolloutError, error_text
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.programs.output import OUTPUT_NAME
from rollout.records.conversations import RootKind
from rollout.records.kinds import RolloutFinished
from rollout.rundir.artifacts import attempt_directory
from rollout.session.policy import PolicyClient
from rollout.session.turns import EndpointSession
from rollout.tasks.orders import RolloutOrder
from rollout.worker.attempt import Attempt, RolloutTimeout, RunMetadata
from transports import QueueError, open_queue

_ATTEMPT = 1
_ERROR_CHARS = 160
_OUTPUT_CHARS = 600
_SPARE_SECONDS = 60.0
"""The watch ends a play in time. The attempt itself gets this much longer."""


@dataclass(frozen=True, slots=True)
class PlayLimits:
    """When a play is ended, if the program does not end by itself.

    Attributes:
        seconds: the time until then; after a fault, `seconds_after_fault` counts instead.
        seconds_after_fault: the time after the fault.
        requests_after_fault: the number of requests after the fault.
        answers_after_end: the number of answers after the one with which the task ends.
    """

    seconds: float = 60.0
    seconds_after_fault: float = 35.0
    requests_after_fault: int = 60
    answers_after_end: int = 12


@dataclass(frozen=True, slots=True)
class AgentPlay:
    """What was seen in a play.

    Attributes:
        fault: the fault of the play; None: a normal play.
        turns: the turns.
        requests: the requests of the program, in order.
        roots: the kind of each root.
        counts: the counter of the gateway, with the names of `GatewayCount`.
        endpoints: how many endpoints the environment opened.
        finished: the last record of the attempt; None if it has none.
        error: why there is none: an error of the infrastructure or of the environment.
        was_ended: whether the program did not end by itself, so that the play was ended.
        end: when the play ended, on the monotonic clock.
        seconds: how long it took.
        called_tools: the names of the tools that the script called.
        is_shown_end: whether the script gave an answer with which the task ends.
        output: the end of what the program printed.
    """

    fault: Fault | None
    turns: tuple[ObservedTurn, ...]
    requests: tuple[SeenRequest, ...]
    roots: Mapping[int, RootKind]
    counts: Mapping[str, int]
    endpoints: int
    finished: RolloutFinished | None
    error: str | None
    was_ended: bool
    end: float
    seconds: float
    called_tools: tuple[str, ...]
    is_shown_end: bool
    output: str = ""

    @property
    def error_message(self) -> str | None:
        """The type and the whole text of the error that ended the rollout; None if it has a score."""
        if self.finished is None:
            return self.error
        error = self.finished.error
        return None if error is None else f"{error.get('type')}: {error.get('message')}"

    @property
    def asking(self) -> list[SeenRequest]:
        """The requests that ask for an answer of the policy."""
        return [request for request in self.requests if request.asks]

    @property
    def struck(self) -> SeenRequest | None:
        """The first request that got the fault."""
        return next((request for request in self.requests if request.fault is not None), None)

    @property
    def after_fault(self) -> list[SeenRequest]:
        """The requests for an answer after the one that got the fault."""
        asking, struck = self.asking, self.struck
        return [] if struck is None else asking[asking.index(struck) + 1 :]

    def describe_end(self) -> str:
        """Return how the rollout ended, such as `a reward of 0` or the error."""
        finished = self.finished
        if finished is None:
            return f"an error: {self.error}"
        if finished.error is not None:
            message = str(finished.error.get("message")).partition("\n")[0].removesuffix(f" {LAST_LINES}")
            return f"{finished.status}: {finished.error.get('type')}: {textwrap.shorten(message, _ERROR_CHARS)}"
        metrics = ", ".join(f"{name} {value:g}" for name, value in finished.metrics.items())
        reward = "no reward" if finished.reward is None else f"the reward {finished.reward:g}"
        return f"{reward}{f' ({metrics})' if metrics else ''}"


class AgentPlayer:
    """Plays the first task of a configuration.

    Args:
        config: the configuration.
        order: the order to play.
        renderers: the renderers of the model.
        shared_resources: what `shared` of the environment's class yielded.
        directory: a temporary directory for all plays; its path must be short, because it gets unix sockets.
    """

    def __init__(
        self, config: Config, order: RolloutOrder, renderers: RendererPool, shared_resources: object, directory: Path
    ) -> None:
        self._config = config
        self._order = order
        self._renderers = renderers
        self._shared_resources = shared_resources
        self._directory = directory

    async def play(
        self, fault: Fault | None, limits: PlayLimits, is_struck: Callable[[SeenRequest], bool] = lambda _: False
    ) -> AgentPlay:
        """Play once.

        Args:
            fault: the fault; None: a normal play.
            limits: when the play is ended.
            is_struck: says whether a request gets the fault.
        """
        directory = self._directory / (fault.value if fault else "normal")
        directory.mkdir()
        with _stderr_in_file(directory / "stderr.txt"):
            return await self._play_in(directory, fault, limits, is_struck)

    async def _play_in(
        self,
        directory: Path,
        fault: Fault | None,
        limits: PlayLimits,
        is_struck: Callable[[SeenRequest], bool],
    ) -> AgentPlay:
        script = AgentScript()
        gateway_socket = directory / "gateway.sock"
        proxy = AgentProxy(gateway_socket, fault, is_struck)
        config = self._config.gateway
        async with (
            proxy.listening(host=config.host, port=config.port) as port,
            _listening_at_socket(proxy, directory / "agent.sock" if config.unix_socket else None) as agent_socket,
            Gateway(
                config.model_copy(
                    update={
                        "host": "127.0.0.1",
                        "port": 0,
                        "advertise": config.advertised_address(port),
                        "unix_socket": gateway_socket,
                    }
                ),
                model=self._config.model.name,
                metrics=WorkerMetrics(""),
            ) as gateway,
        ):
            opener = _ProxiedEndpoints(gateway, proxy, directory, agent_socket)
            return await self._play_attempt(script, proxy, opener, directory, fault, limits)

    async def _play_attempt(
        self,
        script: AgentScript,
        proxy: AgentProxy,
        opener: "_ProxiedEndpoints",
        directory: Path,
        fault: Fault | None,
        limits: PlayLimits,
    ) -> AgentPlay:
        config, images = self._config, self._config.images
        artifacts = directory / "artifacts"
        async with (
            ScriptedClient(config.model.name, script, self._renderers, config.engine.timeout) as client,
            open_queue(f"memory://{uuid.uuid4().hex}") as queue,
        ):
            policy = PolicyClient(
                self._renderers,
                client,
                ImagePolicy("offload", directory / "images", images.allow, images.max_bytes, images.max_pixels),
                config.engine.sampling.model_dump(mode="json"),
                open_endpoint=opener.open_endpoint,
                artifacts=artifacts,
            )
            metadata = RunMetadata("doctor", config.run.name, config.model.name, config.policy.version, config.digest())
            attempt = Attempt(self._order, _ATTEMPT, policy, metadata, queue)
            session = attempt.session = ObservedSession(policy, attempt.stream, script)
            began = time.monotonic()
            watch = asyncio.create_task(_watch(attempt, proxy, script, limits))
            finished, error = None, None
            try:
                # A task of its own, because the attempt changes the context in which it is played.
                finished = await asyncio.create_task(
                    attempt.play(
                        self._new_environment, timeout=limits.seconds + limits.seconds_after_fault + _SPARE_SECONDS
                    )
                )
            except (RolloutError, AdapterError, QueueError) as failure:
                error = f"{type(failure).__name__}: {error_text(failure)}"
            finally:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
        end = time.monotonic()
        return AgentPlay(
            fault=fault,
            turns=tuple(sorted(session.turns, key=lambda turn: turn.number)),
            requests=tuple(proxy.requests),
            roots=session.root_kinds(),
            counts=Counter(session.counters.gateway),
            endpoints=opener.opened,
            finished=finished,
            error=error,
            was_ended=finished is not None and (finished.error or {}).get("type") == _PlayEnded.__name__,
            end=end,
            seconds=end - began,
            called_tools=tuple(script.calls_made),
            is_shown_end=script.answers_after_end is not None,
            output=_end_of_output(
                attempt_directory(artifacts, self._order.rollout_id, _ATTEMPT) / OUTPUT_NAME, directory
            ),
        )

    def _new_environment(self) -> Environment:
        environment = self._config.new_environment()
        environment.shared_resources = self._shared_resources
        return environment


class _PlayEnded(RolloutTimeout):
    """The program did not end by itself."""


async def _watch(attempt: Attempt, proxy: AgentProxy, script: AgentScript, limits: PlayLimits) -> None:
    """End the attempt if the program does not end by itself."""
    deadline = time.monotonic() + limits.seconds
    while True:
        struck = proxy.struck
        if struck is not None:
            deadline = struck.at + limits.seconds_after_fault
            later = sum(request.asks for request in proxy.requests[proxy.requests.index(struck) + 1 :])
            if later >= limits.requests_after_fault:
                break
        if (script.answers_after_end or 0) > limits.answers_after_end:
            break
        proxy.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(1.0, deadline - time.monotonic()))):
                await proxy.changed.wait()
        if time.monotonic() >= deadline:
            break
    attempt.stop(_PlayEnded("the program does not end by itself"))


class _ProxiedEndpoints:
    """Opens endpoints whose addresses are those of the proxy.

    Attributes:
        opened: how many endpoints were opened.
    """

    def __init__(self, gateway: Gateway, proxy: AgentProxy, directory: Path, agent_socket: Path | None) -> None:
        self.opened = 0
        self._gateway = gateway
        self._proxy = proxy
        self._directory = directory
        self._agent_socket = agent_socket

    @asynccontextmanager
    async def open_endpoint(self, session: EndpointSession, options: EndpointOptions) -> AsyncIterator[Endpoint]:
        """Open an endpoint for a session; see `Gateway.open_endpoint`."""
        self.opened += 1
        socket, agent_socket = options.socket, self._agent_socket
        async with contextlib.AsyncExitStack() as stack:
            if socket is not None:
                inner = self._directory / f"endpoint{self.opened}.sock"
                await stack.enter_async_context(self._proxy.listening(path=socket.path, gateway=inner))
                options, agent_socket = replace(options, socket=replace(socket, path=inner)), socket.path
            endpoint = await stack.enter_async_context(self._gateway.open_endpoint(session, options))
            endpoint.unix_socket = agent_socket
            yield endpoint


@asynccontextmanager
async def _listening_at_socket(proxy: AgentProxy, path: Path | None) -> AsyncIterator[Path | None]:
    if path is None:
        yield None
        return
    async with proxy.listening(path=path):
        yield path


def _end_of_output(output: Path, directory: Path) -> str:
    """Return the end of what the program printed: the output that `Program` kept, or else stderr."""
    file = output if output.is_file() else directory / "stderr.txt"
    return hide_keys(file.read_text("utf-8", "replace")[-_OUTPUT_CHARS:].strip())


@contextmanager
def _stderr_in_file(path: Path) -> Iterator[None]:
    """Send the stderr of this process to a file, because programs without a stderr of their own inherit it."""
    with path.open("wb") as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
