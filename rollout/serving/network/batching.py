"""Continuous batching: whoever is in flight takes part in the next step, whenever it came.

A step decodes one token for all who have begun, and computes the prompts of those who have not. Whoever has ended, or
was aborted meanwhile, is gone before the next one.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from rollout.serving.engine import Answer, SampledToken
from rollout.serving.gate import Gate
from rollout.serving.network.decode_batch import Cohort
from rollout.serving.network.model import Network
from rollout.serving.network.prompts import Prompt
from rollout.serving.network.sampling import draw
from rollout.serving.protocol import RequestRefused

_PREFILL_TOKENS = 16384
"""So many prompt tokens are computed in one step, padding included; a longer prompt has a step for itself."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A request in flight."""

    prompt: Prompt
    answer: Answer
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def newest(self) -> int:
        return self.answer.tokens[-1].token_id

    def tell(self, token: SampledToken, version: str) -> None:
        if self.over.done():
            return
        self.answer.add(token, version)
        if self.answer.finished:
            self.over.set_result(None)

    def fail(self, error: RequestRefused) -> None:
        if not self.over.done():
            self.over.set_exception(error)


@dataclass(slots=True, eq=False)
class _Table:
    """Those whose prompts are computed, one seat for each row of the cohort."""

    seats: list[_Seat]
    cohort: Cohort

    def kept(self, staying: list[_Seat]) -> "_Table | None":
        """Without the others; None where that leaves nobody."""
        if not staying:
            return None
        here = set(staying)
        self.cohort.keep([row for row, seat in enumerate(self.seats) if seat in here])
        return _Table(staying, self.cohort)

    def joined(self, other: "_Table") -> "_Table":
        """Both, one after the other."""
        return _Table([*self.seats, *other.seats], self.cohort.joined(other.cohort))


class Batcher:
    """Steps while anybody is in flight. Belongs to one event loop; the network computes in a thread of its own."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waiting: list[_Seat] = []
        self._table: _Table | None = None
        self._stepping: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    def close(self) -> None:
        """No further step begins."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def write(self, prompt: Prompt, answer: Answer, gate: Gate) -> None:
        """Take part until the answer is finished; cancelled, it takes part no more."""
        seat = _Seat(prompt, answer)
        self._waiting.append(seat)
        if self._stepping is None:
            self._stepping = asyncio.create_task(self._step_on(gate))
        await seat.over

    async def _step_on(self, gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._table:
            async with gate.step():
                staying, beginning = self._present()
                present = [*staying, *beginning]
                if not present:
                    self._table = None
                    continue
                try:
                    drawn = await loop.run_in_executor(self._thread, self._compute, staying, beginning)
                except Exception as error:  # noqa: BLE001 - whatever a network raises ends the requests that met it
                    self._table = None
                    for seat in present:
                        seat.fail(RequestRefused(f"The network failed: {type(error).__name__}: {error}", status=500))
                    continue
                for seat, token in zip(present, drawn, strict=True):
                    seat.tell(token, gate.version)
        # Nothing was awaited since there was nobody left: whoever comes now begins anew.
        self._stepping = None

    def _present(self) -> tuple[list[_Seat], list[_Seat]]:
        """Who takes part in the next step, in the order of its tokens: who stays at the table, and who comes to it."""
        seats = self._table.seats if self._table is not None else ()
        self._waiting = [seat for seat in self._waiting if not seat.over.done()]
        beginning = self._waiting[: _fitting([len(seat.prompt.token_ids) for seat in self._waiting])]
        self._waiting = self._waiting[len(beginning) :]
        return [seat for seat in seats if not seat.over.done()], beginning

    def _compute(self, staying: list[_Seat], beginning: Sequence[_Seat]) -> list[SampledToken]:
        """In the network's thread: a token for everybody who stays, and for those who begin, who then sit there."""
        with torch.inference_mode():
            self._table = None if self._table is None else self._table.kept(staying)
            return [*self._decoded(), *self._begun(beginning)]

    def _decoded(self) -> list[SampledToken]:
        if self._table is None:
            return []
        seats = self._table.seats
        logits = self._network.decode(self._table.cohort, [seat.newest for seat in seats])
        return draw(logits, [seat.prompt for seat in seats])

    def _begun(self, beginning: Sequence[_Seat]) -> list[SampledToken]:
        if not beginning:
            return []
        prompts = [seat.prompt for seat in beginning]
        logits, cohort = self._network.prefill(prompts)
        table = _Table(list(beginning), cohort)
        self._table = table if self._table is None else self._table.joined(table)
        return draw(logits, prompts)


def _fitting(lengths: Sequence[int]) -> int:
    """How many of the first prompts are computed together."""
    longest = 0
    for count, length in enumerate(lengths):
        longest = max(longest, length)
        if count and longest * (count + 1) > _PREFILL_TOKENS:
            return count
    return len(lengths)
