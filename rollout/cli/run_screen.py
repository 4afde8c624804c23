"""The progress of a run: a bar on a terminal, plain lines elsewhere, and Ctrl-C."""

import signal
import time

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rollout.launch.in_process import RunState

_REFRESH_SECONDS = 0.1
_LINE_INTERVAL_SECONDS = 2.0


async def show_run(state: RunState, stop: anyio.Event) -> None:
    """Show the progress until cancelled, and set `stop` at the first Ctrl-C."""
    async with anyio.create_task_group() as group:
        group.start_soon(_watch_signals, stop)
        console = Console(stderr=True)
        await (_show_bar(state, console) if console.is_terminal else _show_lines(state, console))


async def _watch_signals(stop: anyio.Event) -> None:
    """The first Ctrl-C ends the run with what was done; the second one ends it at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stop.is_set():
                raise KeyboardInterrupt
            stop.set()


async def _show_bar(state: RunState, console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[details]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=state.total_rollouts, details="")
        while True:
            progress.update(
                task,
                completed=state.trainer_counters.trajectories,
                description="rollouts" if state.engine_description else "starting",
                details=_details(state),
            )
            await anyio.sleep(_REFRESH_SECONDS)


async def _show_lines(state: RunState, console: Console) -> None:
    last_shown = time.monotonic()
    while True:
        await anyio.sleep(_REFRESH_SECONDS)
        if time.monotonic() - last_shown >= _LINE_INTERVAL_SECONDS:
            last_shown = time.monotonic()
            done = (
                f"{state.trainer_counters.trajectories}/{state.total_rollouts} rollouts"
                if state.engine_description
                else "starting"
            )
            console.print(f"{done}  {_details(state)}".rstrip(), highlight=False)


def _details(state: RunState) -> str:
    rewards = state.trainer_counters.rewards
    parts = [f"{state.worker_counters.in_flight} in flight"] if state.worker_counters.in_flight else []
    if rewards:
        parts.append(f"reward {sum(rewards) / len(rewards):.3f}")
    if state.trainer_counters.failures:
        parts.append(f"{len(state.trainer_counters.failures)} with errors")
    return "  ".join(parts)
