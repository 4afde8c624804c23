"""A launch while it goes on: a live table on a terminal, plain lines elsewhere, and Ctrl-C.

Whoever reads it may stand still, as a stopped terminal or a pager does: everything is written in a thread, so that the
supervisor goes on noticing deaths.
"""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import anyio
import anyio.to_thread
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rollout.launch.launch import EnvironmentState, LaunchState

_REFRESH = 0.5
_LINE_EVERY = 5.0
_WINDOW = 30.0
_UNKNOWN = "–"
_COLUMNS = ("environment", "workers", "in flight", "done", "reward", "turns/s", "tokens/s", "failed", "backlog", "left")
_NARROW = {"in flight": "in\nflight", "turns/s": "turns\n/s", "tokens/s": "tokens\n/s", "workers": "work-\ners"}
"""Headings in two lines, so that eighty columns have room for every number."""


class LaunchScreen:
    """Shows a launch, and passes signals on to it."""

    def __init__(self, state: LaunchState, console: Console) -> None:
        self.interrupted = False
        self._state = state
        self._console = console
        self._rates = {environment.name: _Rate() for environment in state.environments}

    async def accompany(self, _: LaunchState) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_signals)
            await (self._show_table() if self._console.is_terminal else self._show_lines())

    async def _watch_signals(self) -> None:
        """SIGTERM and the first Ctrl-C drain; after that, Ctrl-C ends the workers at once."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for number in received:
                if number == signal.SIGINT and self.interrupted:
                    self._state.kill()
                self.interrupted = self.interrupted or number == signal.SIGINT
                first = not self._state.stopping_early
                self._state.stop_early()
                if first:
                    await self._print(self._stopping())

    def _stopping(self) -> str:
        environments = self._state.environments
        in_flight = sum(environment.in_flight for environment in environments)
        grace = max(environment.launch_config.config.worker.grace for environment in environments)
        return f"stopping: {in_flight} rollouts in flight have {grace:g} s to finish; Ctrl-C again ends them"

    async def _show_table(self) -> None:
        live = Live(console=self._console, transient=True, auto_refresh=False)
        try:
            await anyio.to_thread.run_sync(live.start)
            while True:
                table = launch_table(await self._rows(), self._console.width)
                await anyio.to_thread.run_sync(partial(live.update, table, refresh=True))
                await anyio.sleep(_REFRESH)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(live.stop)

    async def _show_lines(self) -> None:
        shown = time.monotonic()
        while True:
            await anyio.sleep(_REFRESH)
            rows = await self._rows()
            if time.monotonic() - shown >= _LINE_EVERY:
                shown = time.monotonic()
                for row in rows:
                    told = "  ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS[1:], row[1:], strict=True))
                    await self._print(f"{row[0]}: {told}")

    async def _print(self, text: str) -> None:
        await anyio.to_thread.run_sync(
            partial(self._console.print, text, highlight=False, markup=False, soft_wrap=True)
        )

    async def _rows(self) -> list[tuple[str, ...]]:
        for environment in self._state.environments:
            await anyio.to_thread.run_sync(environment.outcome_totals.refresh)
        return [self._row(environment) for environment in self._state.environments]

    def _row(self, environment: EnvironmentState) -> tuple[str, ...]:
        ended, rate = environment.outcome_totals, self._rates[environment.name]
        rate.note(environment.worker_totals + Counter(done=ended.rollout_count))
        endless = environment.is_fed_externally
        return (
            environment.name,
            f"{environment.ready_workers}/{len(environment.worker_slots)}",
            str(environment.in_flight),
            str(ended.rollout_count) if endless else f"{ended.rollout_count}/{environment.total_rollouts}",
            f"{ended.reward_sum / ended.reward_count:.3f}" if ended.reward_count else _UNKNOWN,
            f"{rate.of('turns'):.1f}",
            f"{rate.of('tokens'):.0f}",
            str(ended.status_counts["failed"]),
            f"{environment.backlog_bytes / 1e6:.1f} MB",
            _UNKNOWN if endless else _left(environment.total_rollouts - ended.rollout_count, rate.of("done")),
        )


def launch_table(rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """One row for each environment. Where it is narrow, names are broken into lines; numbers never are."""
    wide = _table(_COLUMNS, rows, gap=2)
    if Console(width=10_000).measure(wide).maximum <= width:
        return wide
    return _table([_NARROW.get(name, name) for name in _COLUMNS], rows, gap=1)


def _table(headings: Sequence[str], rows: Sequence[tuple[str, ...]], *, gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    table.add_column(headings[0], overflow="fold", min_width=8)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


class _Rate:
    """What is done per second, over the last half minute."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, Counter[str]]] = []

    def note(self, totals: Counter[str]) -> None:
        now = time.monotonic()
        self._seen.append((now, totals))
        while self._seen[0][0] < now - _WINDOW and len(self._seen) > 2:
            del self._seen[0]

    def of(self, name: str) -> float:
        (since, before), (now, after) = self._seen[0], self._seen[-1]
        return (after[name] - before[name]) / (now - since) if now > since else 0.0


def _left(rollouts: int, rate: float) -> str:
    if rate <= 0:
        return _UNKNOWN
    seconds = int(rollouts / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
