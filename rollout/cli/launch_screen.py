"""Shows the progress of a launch as a live table on a terminal, or as plain lines elsewhere, and handles Ctrl-C.

A thread writes everything. If a stopped terminal or a pager blocks it, the supervisor still notices dead workers.
"""

import signal
import time
from collections.abc import Sequence
from functools import partial

import anyio
import anyio.to_thread
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rollout.cli.output import can_redraw
from rollout.launch.state import EnvironmentState, LaunchState
from rollout.rundir.outcomes import OutcomeTotals

_REFRESH_SECONDS = 0.5
_LINE_INTERVAL_SECONDS = 5.0
_RATE_WINDOW_SECONDS = 30.0
_UNKNOWN = "–"
_COLUMNS = ("environment", "workers", "in flight", "done", "reward", "turns/s", "tokens/s", "failed", "backlog", "left")
_LEAST_IMPORTANT = ("tokens/s", "turns/s", "backlog", "workers")
"""The columns that a narrow table leaves out, in this order."""
_NAME_WIDTH = 18
"""A longer name is broken into lines before columns are left out."""


class LaunchScreen:
    """Shows a launch, and stops the launch at a signal.

    Attributes:
        interrupted: whether the user pressed Ctrl-C.
    """

    def __init__(self, state: LaunchState, console: Console) -> None:
        self.interrupted = False
        self._state = state
        self._console = console
        self._rates = {environment.name: _Rate() for environment in state.environments}

    async def show(self, _: LaunchState) -> None:
        """Show the launch until this call is cancelled, and stop the launch at a signal."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_signals)
            await (self._show_table() if can_redraw(self._console) else self._show_lines())

    async def _watch_signals(self) -> None:
        """Drain at SIGTERM and at the first Ctrl-C; end the workers at once at the second Ctrl-C."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if number == signal.SIGINT and self.interrupted:
                    self._state.kill()
                self.interrupted = self.interrupted or number == signal.SIGINT
                is_first = not self._state.stopping_early
                self._state.stop_early()
                if is_first:
                    await self._print(self._stopping_message())

    def _stopping_message(self) -> str:
        environments = self._state.environments
        in_flight = sum(environment.in_flight for environment in environments)
        grace = max(environment.launch_config.config.worker.grace for environment in environments)
        return f"stopping: {in_flight} rollouts in flight have {grace:g} s to finish; a second Ctrl-C ends them"

    async def _show_table(self) -> None:
        live = Live(console=self._console, transient=True, auto_refresh=False)
        try:
            await anyio.to_thread.run_sync(live.start)
            while True:
                table = launch_table(await self._read_rows(), self._console.width)
                shown = Group(table, *self._waits())
                await anyio.to_thread.run_sync(partial(live.update, shown, refresh=True))
                await self._print_notices(with_waits=False)
                await anyio.sleep(_REFRESH_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(live.stop)

    async def _show_lines(self) -> None:
        last_shown = time.monotonic()
        while True:
            await anyio.sleep(_REFRESH_SECONDS)
            rows = await self._read_rows()
            await self._print_notices(with_waits=True)
            if time.monotonic() - last_shown >= _LINE_INTERVAL_SECONDS:
                last_shown = time.monotonic()
                for row in rows:
                    cells = "  ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS[1:], row[1:], strict=True))
                    await self._print(f"{row[0]}: {cells}")

    def _waits(self) -> list[Text]:
        return [
            Text(f"{environment.name}: {environment.wait.text}", style="yellow")
            for environment in self._state.environments
            if environment.wait is not None
        ]

    async def _print_notices(self, *, with_waits: bool) -> None:
        while self._state.notices:
            notice = self._state.notices.popleft()
            if with_waits or not notice.is_wait:
                await self._print(notice.text)

    async def _print(self, text: str) -> None:
        await anyio.to_thread.run_sync(
            partial(self._console.print, text, highlight=False, markup=False, soft_wrap=True)
        )

    async def _read_rows(self) -> list[tuple[str, ...]]:
        await anyio.to_thread.run_sync(self._state.outcomes.refresh)
        return [self._row(environment) for environment in self._state.environments]

    def _row(self, environment: EnvironmentState) -> tuple[str, ...]:
        totals, rate = environment.outcome_totals, self._rates[environment.name]
        rate.add(totals)
        rollouts_per_second, turns_per_second, tokens_per_second = rate.per_second()
        is_endless = environment.is_fed_externally
        return (
            environment.name,
            f"{environment.ready_workers}/{len(environment.worker_slots)}",
            str(environment.in_flight),
            str(totals.rollouts) if is_endless else f"{totals.rollouts}/{environment.total_rollouts}",
            _UNKNOWN if totals.reward_mean is None else f"{totals.reward_mean:.3f}",
            f"{turns_per_second:.1f}",
            f"{tokens_per_second:.0f}",
            str(totals.status_counts["failed"]),
            f"{environment.backlog_bytes / 1e6:.1f} MB",
            _UNKNOWN if is_endless else _time_left(environment.total_rollouts - totals.rollouts, rollouts_per_second),
        )


def launch_table(rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """Return a table with a row for each environment.

    A narrow table breaks long names into lines and leaves out the least important columns. It never breaks a number.
    """
    shown = list(_COLUMNS)
    leave_out = iter(_LEAST_IMPORTANT)
    for gap in (2, 1):
        if _needed_width(shown, rows, gap) <= width:
            return _build_table(shown, rows, gap)
    while _needed_width(shown, rows, 1) > width and (column := next(leave_out, None)) is not None:
        shown.remove(column)
    return _build_table(shown, rows, 1)


def _needed_width(columns: Sequence[str], rows: Sequence[tuple[str, ...]], gap: int) -> int:
    cells_by_column = dict(zip(_COLUMNS, zip(_COLUMNS, *rows, strict=True), strict=True))
    widths = [max(map(len, cells_by_column[column])) for column in columns]
    return min(widths[0], _NAME_WIDTH) + sum(width + gap for width in widths[1:])


def _build_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    table.add_column(columns[0], overflow="fold", min_width=8)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for column, cell in zip(_COLUMNS, row, strict=True) if column in columns))
    return table


class _Rate:
    """Computes the rates of ended rollouts, turns and tokens over the last half minute."""

    def __init__(self) -> None:
        self._counts_by_time: list[tuple[float, int, int, int]] = []

    def add(self, totals: OutcomeTotals) -> None:
        now = time.monotonic()
        self._counts_by_time.append((now, totals.rollouts, totals.turns, totals.tokens))
        while self._counts_by_time[0][0] < now - _RATE_WINDOW_SECONDS and len(self._counts_by_time) > 2:
            del self._counts_by_time[0]

    def per_second(self) -> tuple[float, float, float]:
        """Return the rollouts, the turns and the tokens per second."""
        (since, *before), (now, *after) = self._counts_by_time[0], self._counts_by_time[-1]
        seconds = now - since or float("inf")
        rollouts, turns, tokens = (end - begin for begin, end in zip(before, after, strict=True))
        return rollouts / seconds, turns / seconds, tokens / seconds


def _time_left(rollouts: int, rate: float) -> str:
    if rate <= 0:
        return _UNKNOWN
    seconds = int(rollouts / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
