"""The gate between requests and weights: while it is closed nothing is computed, and weights may change.

A request is *in flight* from its admission to its last token. A step computes tokens, of one request or of a batch,
with one version of the weights. `pause` returns when nothing is left that the old weights could still touch.

    wait    those in flight finish, new ones wait for `resume`
    abort   those in flight end with the tokens they have, new ones wait
    keep    those in flight stand still between two steps and go on after `resume`, with other weights perhaps
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, get_args

from rollout.serving.protocol import RequestRefused

PauseMode = Literal["abort", "wait", "keep"]
PAUSE_MODES: tuple[PauseMode, ...] = get_args(PauseMode)


class Gate:
    """Opened and closed from one event loop."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._paused: PauseMode | None = None
        self._in_flight: set[asyncio.Event] = set()
        self._steps = 0
        self._changing = False
        self._changed = asyncio.Condition()

    @property
    def version(self) -> str:
        """What the weights are called. Constant during a step."""
        return self._version

    @property
    def paused(self) -> bool:
        """Whether new requests wait."""
        return self._paused is not None

    @asynccontextmanager
    async def admitted(self, aborted: asyncio.Event) -> AsyncIterator[None]:
        """Wait until requests may begin, and be in flight; a pause that aborts sets the event."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.paused)
            self._in_flight.add(aborted)
        try:
            yield
        finally:
            self._in_flight.discard(aborted)
            await self._tell()

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Wait until tokens may be computed; weights do not change before the end of the step."""
        if self._still():
            async with self._changed:
                await self._changed.wait_for(lambda: not self._still())
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1
            if self.paused:
                await self._tell()

    async def pause(self, mode: PauseMode) -> None:
        """Close the gate and wait until it is quiet behind it.

        Raises:
            RequestRefused: somebody else paused or resumed meanwhile, so that nothing is certain.
        """
        self._paused = mode
        if mode == "abort":
            for aborted in self._in_flight:
                aborted.set()
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._paused != mode or self._quiet())
        if self._paused != mode:
            raise RequestRefused(
                f"The pause in the mode {mode} was overtaken by another pause or by a resume; "
                "let one trainer alone push weights to this engine.",
                status=409,
            )

    async def resume(self) -> None:
        """Open the gate."""
        self._paused = None
        await self._tell()

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Weights may change within; no step begins before the end, whoever resumes. Raises RequestRefused."""
        self._require_quiet()
        self._changing = True
        try:
            yield
        finally:
            self._changing = False
            await self._tell()

    def rename(self, version: str) -> None:
        """Say what the weights are called. Raises RequestRefused."""
        self._require_quiet()
        self._version = version

    def _require_quiet(self) -> None:
        if self._changing or not self.paused or not self._quiet():
            raise RequestRefused(
                "Weights and their version change only while the engine is paused: POST /pause and wait for its "
                "answer, reload, name the version, POST /resume. "
                "Otherwise tokens would be labelled with weights that did not give them."
            )

    def _still(self) -> bool:
        return self._paused == "keep" or self._changing

    def _quiet(self) -> bool:
        return self._steps == 0 and (self._paused == "keep" or not self._in_flight)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
