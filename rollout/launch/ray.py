"""Runs workers on a Ray cluster: one actor for each worker, spread over the nodes.

Ray finds machines with free CPUs, starts and ends processes there, and reports when a process has ended. The
supervisor, not Ray, restarts workers: it expires the leases of a dead worker at once, and it limits the restarts. No
records or images go through Ray: workers use the queues, as on every other place.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import structlog

from rollout.errors import ConfigurationError
from rollout.launch.places import NotStarted
from rollout.launch.ray_actor import WorkerActor

log = structlog.get_logger()

_PLACEMENT_TIMEOUT = 120.0
_WORKER_START_TIMEOUT = 120.0


class RayUnavailable(ConfigurationError):
    """Ray is not installed, or its cluster does not have enough free CPUs."""


class RayWorker:
    """A worker in a Ray actor. See `rollout.launch.places.WorkerProcess`."""

    def __init__(self, ray: Any, actor: Any, pid: int) -> None:
        self._ray = ray
        self._actor = actor
        self._pid = pid

    @property
    def pid(self) -> int:
        """See `WorkerProcess.pid`."""
        return self._pid

    def send_line(self, line: bytes) -> None:
        """See `WorkerProcess.send_line`."""
        self._actor.send_line.remote(line)

    async def read_lines(self) -> AsyncIterator[bytes]:
        """See `WorkerProcess.read_lines`."""
        while True:
            try:
                lines = await self._actor.next_lines.remote()
            except self._ray.exceptions.RayError:
                return
            for line in lines:
                if not line:
                    return
                yield line

    def send_signal(self, signum: signal.Signals) -> None:
        """See `WorkerProcess.send_signal`."""
        self._actor.send_signal.remote(int(signum))

    def kill(self) -> None:
        """See `WorkerProcess.kill`."""
        self._ray.kill(self._actor, no_restart=True)

    async def wait(self) -> int:
        """See `WorkerProcess.wait`."""
        try:
            return int(await self._actor.wait.remote())
        except self._ray.exceptions.RayError as error:
            log.warning("an actor is gone", pid=self._pid, error=str(error).partition("\n")[0])
            return -signal.SIGKILL

    async def aclose(self) -> None:
        """See `WorkerProcess.aclose`."""
        self.kill()


class RayPlace:
    """Starts workers on a Ray cluster. See `rollout.launch.places.Place`.

    It connects to the cluster that RAY_ADDRESS or `ray start` names. If there is none, it starts a cluster on this
    machine.

    Args:
        worker_count: the number of workers that run at a time.
    """

    def __init__(self, worker_count: int) -> None:
        try:
            self._ray: Any = import_module("ray")
        except ModuleNotFoundError:
            raise RayUnavailable(
                "--on ray needs Ray; install it with rollout's extra: pip install 'rollout-rl[ray]'."
            ) from None
        self._worker_count = worker_count
        self._bundle_indexes: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        # Ray connects in a thread, because on the main thread it would replace our Python handler of SIGTERM. It still
        # sets a C handler, which aborts the process. The next line sets our handler again.
        await anyio.to_thread.run_sync(self._connect)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        placement_groups = import_module("ray.util.placement_group")
        self._placement_group: Any = placement_groups.placement_group(
            [{"CPU": 1}] * self._worker_count, strategy="SPREAD"
        )
        try:
            await asyncio.wait_for(self._placement_group.ready(), _PLACEMENT_TIMEOUT)
        except TimeoutError:
            await self.__aexit__(None, None, None)
            raise RayUnavailable(
                f"the Ray cluster did not have {self._worker_count} free CPUs, one for each worker, within "
                f"{_PLACEMENT_TIMEOUT:g} s. Start fewer workers (--workers), or add nodes."
            ) from None
        log.info("ray is ready", nodes=len(self._ray.nodes()), workers=self._worker_count)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._ray.shutdown)

    async def start(self, name: str, command: Sequence[str], output_path: Path) -> RayWorker:
        """See `Place.start`."""
        strategies = import_module("ray.util.scheduling_strategies")
        bundle_index = self._bundle_indexes.setdefault(name, len(self._bundle_indexes))
        placement = strategies.PlacementGroupSchedulingStrategy(
            self._placement_group, placement_group_bundle_index=bundle_index
        )
        actor = (
            self._ray.remote(WorkerActor).options(num_cpus=1, max_restarts=0, scheduling_strategy=placement).remote()
        )
        try:
            start_call = actor.start.remote(name, list(command), str(output_path))
            pid, actor_pid = await asyncio.wait_for(start_call, _WORKER_START_TIMEOUT)
        except (TimeoutError, self._ray.exceptions.RayError) as error:
            self._ray.kill(actor, no_restart=True)
            raise NotStarted(
                f"the actor of {name} could not start: {error or f'no answer within {_WORKER_START_TIMEOUT:g} s'}"
            ) from None
        except BaseException:
            self._ray.kill(actor, no_restart=True)
            raise
        log.info("actor started", worker=name, pid=pid, actor=actor_pid)
        return RayWorker(self._ray, actor, pid)

    def _connect(self) -> None:
        self._ray.init(log_to_driver=False, logging_level="ERROR")
