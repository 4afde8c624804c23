"""Publishes new versions of the policy: saves them, pushes them to all engines, and announces them to the runs.

    with PolicyPublisher(settings) as publisher:
        publisher.publish(0, model.save_pretrained)                       # before the first rollout
        for step, groups in enumerate(batches, start=1):
            train(groups)
            publisher.publish(step, model.save_pretrained, {"codeword": Consumption(step * 64)})

An engine is *behind* if its update failed, or if it does not answer. The publisher announces the version when at least
one engine has it. After that, workers only use engines that report this version. The publisher checks all engines
regularly, and pushes the version to engines that are behind, such as an engine that was restarted.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import structlog
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollout.engine.errors import EngineError
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.weight_updates import EngineState, fetch_engine_states, update_weights
from rollout.errors import RolloutError
from rollout.records.progress import ProgressPublisher, TrainerProgress
from rollout.records.versions import OnUpdate
from rollout.trainer.weights.directory import SavedVersion, Saver, WeightsDirectory, WeightsError
from transports import QueueError

log = structlog.get_logger()

_REPAIR_INTERVALS = (5.0, 60.0)
"""Seconds between two checks of the engines. While an engine cannot be updated, they grow from the first number to the
second."""


class PushFailed(RolloutError):
    """No engine has the new version. It was not announced, and rollouts continue with the previous version."""


@dataclass(frozen=True, slots=True)
class Consumption:
    """The number of rollouts of one environment that a trainer has received since the beginning of the run.

    Attributes:
        consumed: the number of rollouts that were used in a training step.
        discarded: the number of rollouts that do not train, because they failed, were abandoned, or are too stale.
    """

    consumed: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """Says where and how versions are pushed; `rollout.trainer.weights.from_config` makes it from configurations.

    Attributes:
        engines: the root URLs of all engines that workers use.
        weights: the directory of the weights; it must have the same path for the trainer and for the engines.
        controls: for each environment, the URL of the queue for the trainer's progress (`queue.control`).
        on_update: what an engine does with running requests during an update.
        timeout: the limit for the update of one engine in seconds, including the wait for running requests.
        api_key: the bearer token for requests to the engines; None: send no token.
        reference: a checkpoint. The first version must have the same tensors and shapes; None: do not compare it. Each
            later version is compared with the version before it.
    """

    engines: tuple[str, ...]
    weights: Path | str
    controls: Mapping[str, str] = field(default_factory=dict)
    on_update: OnUpdate = "wait"
    timeout: float = 600.0
    api_key: str | None = field(default=None, repr=False)
    reference: Path | str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push.

    Attributes:
        version: the version that was pushed.
        engines: the URLs of the engines that have it.
        behind: for the URL of each other engine, the reason why the engine does not have the version.
    """

    version: int
    engines: tuple[str, ...]
    behind: Mapping[str, str]


class AsyncPolicyPublisher:
    """Publishes versions on an event loop. Use it as an async context manager.

    Only one publisher can use a directory of weights. The attribute `version` is the version that was announced last;
    it is None before the first announcement.
    """

    def __init__(self, settings: PublisherSettings) -> None:
        self.settings = settings
        self.version: int | None = None
        self._weights_directory = WeightsDirectory(
            Path(settings.weights), None if settings.reference is None else Path(settings.reference)
        )
        self._consumption = dict.fromkeys(settings.controls, Consumption())
        self._transport = HttpxTransport(settings.api_key)
        self._progress_publishers: dict[str, ProgressPublisher] = {}
        self._push_lock = anyio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._weights_directory.lock())
            await stack.enter_async_context(self._transport)
            for environment, url in self.settings.controls.items():
                self._progress_publishers[environment] = await stack.enter_async_context(ProgressPublisher(url))
            stack.push_async_callback(self._push_lock.acquire)  # at exit, wait until a cancelled push has cleaned up
            await stack.enter_async_context(self._repairing_in_background())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def publish(self, version: int, save: Saver, consumption: Mapping[str, Consumption] | None = None) -> Pushed:
        """Save a version, push it to every engine, and announce it. Its number may be smaller than the previous one.

        Raises:
            WeightsError: the new weights cannot be saved or read, or belong to another model; the previous version
                stays.
            PushFailed: no engine could be updated.
        """
        await anyio.to_thread.run_sync(self.save, version, save)
        return await self.push(consumption)

    def save(self, version: int, save: Saver) -> None:
        """Save a version without pushing it. It needs no event loop."""
        self._weights_directory.replace(version, save)

    async def push(self, consumption: Mapping[str, Consumption] | None = None) -> Pushed:
        """Push the saved version to all engines, even if they already have it, and announce it.

        Raises:
            PushFailed: no version is saved, or no engine could be updated.
        """
        self._consumption.update(consumption or {})
        async with self._push_lock:
            saved, states = self._require_saved_version(), await self.states()
            pushed = await self._update_engines(saved, states, list(states))
            await self._announce(pushed.version)
        return pushed

    async def repair(self) -> Pushed:
        """Push the saved version to the engines that are paused or do not have it.

        Raises:
            PushFailed: no version is saved, or no engine has it.
        """
        async with self._push_lock:
            saved, states = self._require_saved_version(), await self.states()
            expected_state = EngineState(str(saved.version), paused=False)
            pushed = await self._update_engines(
                saved, states, [url for url, state in states.items() if state != expected_state]
            )
            if self.version != pushed.version:
                await self._announce(pushed.version)
        return pushed

    async def states(self) -> Mapping[str, EngineState | EngineError]:
        """Ask every engine for its version. Return the state or the error of each engine, by its URL."""
        return await fetch_engine_states(self._transport, self.settings.engines)

    def _require_saved_version(self) -> SavedVersion:
        saved = self._weights_directory.saved_version
        if saved is None:
            raise PushFailed(f"{self.settings.weights} does not contain a complete version. Publish a version first.")
        return saved

    async def _update_engines(
        self, saved: SavedVersion, states: Mapping[str, EngineState | EngineError], outdated_urls: Sequence[str]
    ) -> Pushed:
        """Update all outdated engines that answer, at the same time; raise PushFailed if no engine has the version."""
        settings, started_at = self.settings, time.monotonic()
        behind = {url: str(state) for url, state in states.items() if isinstance(state, EngineError)}

        async def update_engine(url: str) -> None:
            try:
                with anyio.fail_after(settings.timeout):
                    await update_weights(
                        self._transport,
                        url,
                        weights_directory=Path(settings.weights),
                        version=str(saved.version),
                        mode=settings.on_update,
                        weights_unchanged=lambda: self._weights_directory.saved_version == saved,
                    )
            except (EngineError, WeightsError) as error:
                behind[url] = str(error)
            except TimeoutError:
                behind[url] = (
                    f"{url} did not load the new weights within {settings.timeout:g} s. If the engine is only slow, "
                    "raise policy.update_timeout."
                )
            else:
                log.info("engine updated", url=url, version=saved.version, seconds=time.monotonic() - started_at)

        async with anyio.create_task_group() as task_group:
            for url in outdated_urls:
                if url not in behind:
                    task_group.start_soon(update_engine, url)
        updated_urls = tuple(url for url in settings.engines if url not in behind)
        for url, reason in behind.items():
            log.warning("engine is behind", url=url, version=saved.version, because=reason)
        if not updated_urls:
            raise PushFailed(f"no engine has version {saved.version}: {' '.join(behind.values())}")
        return Pushed(saved.version, updated_urls, behind)

    async def _announce(self, version: int) -> None:
        for environment, progress_publisher in self._progress_publishers.items():
            consumption = self._consumption[environment]
            await progress_publisher.publish(
                TrainerProgress(version, consumption.consumed, consumption.discarded, pushed=True)
            )
        self.version = version  # only now, so that the next repair repeats an announcement that failed

    @asynccontextmanager
    async def _repairing_in_background(self) -> AsyncIterator[None]:
        # A task group would wrap the exceptions that the trainer raises in its `async with` block.
        repair_task = asyncio.create_task(self._repair_repeatedly())
        try:
            yield
        finally:
            repair_task.cancel()
            await asyncio.wait([repair_task])

    async def _repair_repeatedly(self) -> None:
        """Regularly update the engines that are behind, even while the trainer waits for rollouts that need them."""
        interval = _REPAIR_INTERVALS[0]
        while True:
            await anyio.sleep(interval)
            if self.version is None:
                continue  # the saved version may be from an earlier trainer, because this one has pushed nothing yet
            try:
                all_updated = not (await self.repair()).behind
            except (RolloutError, QueueError) as error:
                log.warning("engines are behind", because=str(error))
                all_updated = False
            interval = _REPAIR_INTERVALS[0] if all_updated else min(2 * interval, _REPAIR_INTERVALS[1])


class PolicyPublisher:
    """Publishes versions for a program without an event loop; the event loop runs in another thread.

    The saver runs in the thread that calls `publish`.
    """

    def __init__(self, settings: PublisherSettings) -> None:
        self._publisher = AsyncPolicyPublisher(settings)
        self._stack = ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._publisher))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def version(self) -> int | None:
        """The version that was announced last; None before the first announcement."""
        return self._publisher.version

    def publish(self, version: int, save: Saver, consumption: Mapping[str, Consumption] | None = None) -> Pushed:
        """Save, push and announce a version; see `AsyncPolicyPublisher.publish`."""
        self._publisher.save(version, save)
        push_future = self._portal.start_task_soon(self._publisher.push, consumption)
        try:
            return push_future.result()
        except BaseException:
            push_future.cancel()  # if this thread was interrupted, the push must stop and resume the engines
            raise

    def repair(self) -> Pushed:
        """Update the engines that are paused or behind; see `AsyncPolicyPublisher.repair`."""
        return self._portal.call(self._publisher.repair)

    def states(self) -> Mapping[str, EngineState | EngineError]:
        """Return the state or the error of each engine, by its URL."""
        return self._portal.call(self._publisher.states)
