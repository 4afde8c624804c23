"""Shows the progress of a run as a bar on a terminal, or as plain lines elsewhere, and handles Ctrl-C."""

import asyncio
import signal
import time

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rollout.cli.output import can_redraw
from rollout.launch.in_process import RunState

_REFRESH_SECONDS = 0.1
_LINE_INTERVAL_SECONDS = 2.0


async def show_run(state: RunState, stop: anyio.Event) -> None:
    """Show the progress until this call is cancelled, and set `stop` at the first Ctrl-C."""
    async with anyio.create_task_group() as group:
        group.start_soon(_watch_signals, state, stop)
        console = Console(stderr=True)
        await (_show_bar if can_redraw(console) else _show_lines)(state, console)


async def _watch_signals(state: RunState, stop: anyio.Event) -> None:
    """End the run with its summary at the first Ctrl-C, and at once at the second one.

    Python calls the handlers, not the event loop, so they run even while a rollout blocks the loop.
    """
    loop, signal_count, end_at_once = asyncio.get_running_loop(), 0, anyio.Event()

    def handle_signal(*_: object) -> None:
        nonlocal signal_count
        signal_count += 1
        if state.loop_watchdog is not None:
            state.loop_watchdog.hurry()
        loop.call_soon_threadsafe((stop if signal_count == 1 else end_at_once).set)

    previous_handlers = {signum: signal.signal(signum, handle_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        await end_at_once.wait()
        raise KeyboardInterrupt
    finally:
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)


async def _show_bar(state: RunState, console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[details]}"),
    )
    # Only the event loop draws, because a thread would draw over a debugger that waits for input.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("starting", total=state.total_rollouts, details="")
        while True:
            _print_notices(state, progress.console)
            progress.update(
                task,
                completed=state.trainer_counters.trajectories,
                description="rollouts" if state.engine_description else "starting",
                details=_details(state),
            )
            progress.refresh()
            await anyio.sleep(_REFRESH_SECONDS)


async def _show_lines(state: RunState, console: Console) -> None:
    last_shown = time.monotonic()
    while True:
        await anyio.sleep(_REFRESH_SECONDS)
        _print_notices(state, console)
        if time.monotonic() - last_shown >= _LINE_INTERVAL_SECONDS:
            last_shown = time.monotonic()
            done = (
                f"{state.trainer_counters.trajectories}/{state.total_rollouts} rollouts"
                if state.engine_description
                else "starting"
            )
            console.print(f"{done}  {_details(state)}".rstrip(), highlight=False)


def _print_notices(state: RunState, console: Console) -> None:
    while state.notices:
        console.print(state.notices.popleft(), highlight=False, markup=False, soft_wrap=True)


def _details(state: RunState) -> str:
    in_flight = state.worker.in_flight if state.worker is not None else 0
    parts = [f"{in_flight} in flight"] if in_flight else []
    if (reward := state.totals.reward_mean) is not None:
        parts.append(f"reward {reward:.3f}")
    if errors := state.totals.errors.rollouts:
        parts.append(f"{errors} with errors")
    return "  ".join(parts)
