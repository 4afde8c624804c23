"""The gate between requests and weights: while it is closed, nothing is computed, and the weights may change.

A request is *in flight* from its admission to its last token. A step computes tokens of one request, or of a batch,
with one version of the weights. After `pause` returns, no step with the old weights begins.

    wait    requests in flight finish; new requests wait for `resume`
    abort   requests in flight end with the tokens that they have; new requests wait
    keep    requests in flight stop between two steps, and continue after `resume`, perhaps with other weights
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, get_args

from rollout.serving.protocol import RequestRefused

PauseMode = Literal["abort", "wait", "keep"]
PAUSE_MODES: tuple[PauseMode, ...] = get_args(PauseMode)


class PauseGate:
    """Admits requests and steps, and makes them wait during a pause. Use it in one event loop."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._pause_mode: PauseMode | None = None
        self._in_flight_aborts: set[asyncio.Event] = set()
        self._active_steps = 0
        self._weights_changing = False
        self._state_changed = asyncio.Condition()

    @property
    def version(self) -> str:
        """The version of the weights; it does not change during a step."""
        return self._version

    @property
    def paused(self) -> bool:
        """Whether new requests wait."""
        return self._pause_mode is not None

    @asynccontextmanager
    async def admit(self, aborted: asyncio.Event) -> AsyncIterator[None]:
        """Wait until requests may begin. In this context, the request is in flight; a pause `abort` sets the event."""
        async with self._state_changed:
            await self._state_changed.wait_for(lambda: not self.paused)
            self._in_flight_aborts.add(aborted)
        try:
            yield
        finally:
            self._in_flight_aborts.discard(aborted)
            await self._notify_waiters()

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Wait until tokens may be computed. In this context, the weights do not change."""
        if self._steps_blocked():
            async with self._state_changed:
                await self._state_changed.wait_for(lambda: not self._steps_blocked())
        self._active_steps += 1
        try:
            yield
        finally:
            self._active_steps -= 1
            if self.paused:
                await self._notify_waiters()

    async def pause(self, mode: PauseMode) -> None:
        """Close the gate, and wait until no step runs and, except with `keep`, no request is in flight.

        Raises:
            RequestRefused: another pause or a resume came in the meantime, so the engine may not be paused.
        """
        self._pause_mode = mode
        if mode == "abort":
            for aborted in self._in_flight_aborts:
                aborted.set()
        async with self._state_changed:
            self._state_changed.notify_all()
            await self._state_changed.wait_for(lambda: self._pause_mode != mode or self._is_idle())
        if self._pause_mode != mode:
            raise RequestRefused(
                f"Another pause or a resume replaced the pause in mode {mode}; let only one trainer push weights to "
                "this engine.",
                status=409,
            )

    async def resume(self) -> None:
        """Open the gate."""
        self._pause_mode = None
        await self._notify_waiters()

    @asynccontextmanager
    async def changing_weights(self) -> AsyncIterator[None]:
        """Let the weights change in this context. No step begins before its end, even after `resume`.

        Raises:
            RequestRefused: the engine is not paused, or another change of weights has not ended.
        """
        self._require_idle()
        self._weights_changing = True
        try:
            yield
        finally:
            self._weights_changing = False
            await self._notify_waiters()

    def set_version(self, version: str) -> None:
        """Set the version of the weights. Raises RequestRefused if the engine is not paused."""
        self._require_idle()
        self._version = version

    def _require_idle(self) -> None:
        if self._weights_changing or not self.paused or not self._is_idle():
            raise RequestRefused(
                "The engine is not paused, so its weights and their version cannot change. POST /pause and wait for "
                "its answer, reload, set the version, then POST /resume. Otherwise tokens would get a wrong version."
            )

    def _steps_blocked(self) -> bool:
        return self._pause_mode == "keep" or self._weights_changing

    def _is_idle(self) -> bool:
        return self._active_steps == 0 and (self._pause_mode == "keep" or not self._in_flight_aborts)

    async def _notify_waiters(self) -> None:
        async with self._state_changed:
            self._state_changed.notify_all()
