"""`rollout run`: progress while it goes on, and a summary that a person likes to read."""

import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rollout.cli.printing import tell_end
from rollout.config.load import load_config
from rollout.errors import RolloutError
from rollout.launch.in_process import RunState, prepare_run, run_in_process
from rollout.session.prompt import summarize_prompt_sources
from transports import QueueError

_REFRESH = 0.1
_LINE_EVERY = 2.0
_ERRORS_SHOWN = 3


def run_command(path: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    config = load_config(path, overrides)
    state = prepare_run(config)
    failure: RolloutError | QueueError | None = None
    try:
        run_in_process(config, state, _companion)
    except (RolloutError, QueueError) as error:
        if not state.trainer_counters.trajectories:
            raise
        failure = error  # what was done before still counts, and is told first
    tell_end(state.report(), partial(_print_summary, state), failure, as_json=as_json)
    if state.interrupted:
        return 130
    return 0 if state.trainer_counters.rewards and not state.trainer_counters.violations else 1


async def _companion(state: RunState, stop: anyio.Event) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_watch_signals, stop)
        console = Console(stderr=True)
        await (_show_bar(state, console) if console.is_terminal else _show_lines(state, console))


async def _watch_signals(stop: anyio.Event) -> None:
    """The first Ctrl-C ends the run with what was done; the second one at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async for _ in received:
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
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=state.total_rollouts, told="")
        while True:
            doing = "rollouts" if state.engine_description else "starting"
            progress.update(task, completed=state.trainer_counters.trajectories, description=doing, told=_told(state))
            await anyio.sleep(_REFRESH)


async def _show_lines(state: RunState, console: Console) -> None:
    last = time.monotonic()
    while True:
        await anyio.sleep(_REFRESH)
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            done = (
                f"{state.trainer_counters.trajectories}/{state.total_rollouts} rollouts"
                if state.engine_description
                else "starting"
            )
            console.print(f"{done}  {_told(state)}".rstrip(), highlight=False)


def _told(state: RunState) -> str:
    rewards = state.trainer_counters.rewards
    parts = [f"{state.worker_counters.in_flight} in flight"] if state.worker_counters.in_flight else []
    if rewards:
        parts.append(f"reward {sum(rewards) / len(rewards):.3f}")
    if state.trainer_counters.failures:
        parts.append(f"{len(state.trainer_counters.failures)} with errors")
    return "  ".join(parts)


def _print_summary(state: RunState, console: Console) -> None:
    report, trainer = state.report(), state.trainer_counters
    status = ", ".join(f"{count} {name}" for name, count in sorted(report["status"].items())) or "none finished"
    reward = "none" if report["reward_mean"] is None else f"[bold]{report['reward_mean']:.3f}[/bold]"
    metrics = "".join(f"  {name} {total / len(trainer.rewards):.3f}" for name, total in sorted(trainer.metrics.items()))
    violations = len(trainer.violations)
    verdict = "[green]0 violations[/green]" if not violations else f"[red]{violations} violations[/red]"
    seconds = state.elapsed_seconds or 1e-9
    each = f"  ({report['queue_bytes'] / report['turns']:.0f} a turn)" if report["turns"] else ""
    rows = [
        ("rollouts", f"{report['rollouts']} of {state.total_rollouts}  ({status})"),
        ("reward", f"{reward}{escape(metrics)}"),
        ("turns", f"{report['turns']:,}  ({report['turns'] / seconds:.0f}/s, {report['images']:,} images)"),
        ("prompts", summarize_prompt_sources(state.worker_counters.prompt_sources)),
        ("queue", f"{report['queue_bytes']:,} bytes{each}"),
        ("trainer", f"{trainer.groups} groups, {trainer.samples} samples, {trainer.tokens:,} tokens, {verdict}"),
        ("engine", escape(state.engine_description)),
        ("run", escape(str(state.directory.path))),
        ("time", f"{state.elapsed_seconds:.1f} s" + ("  (stopped early)" if state.interrupted else "")),
    ]
    for name, value in rows:
        console.print(f"[dim]{name:<8}[/dim]  {value}", highlight=False, soft_wrap=True)
    for failed in trainer.failures[:_ERRORS_SHOWN]:
        error = failed.error or {}
        told = f"{failed.rollout} {failed.status}: {error.get('type')}: {error.get('message')}"
        console.print(f"[red]{escape(told)}[/red]", highlight=False)
    if len(trainer.failures) > _ERRORS_SHOWN:
        console.print(
            f"… and {len(trainer.failures) - _ERRORS_SHOWN} more errors, all in {state.directory.path}/log.jsonl"
        )
    for found in trainer.violations[:_ERRORS_SHOWN]:
        told = f"{found.rollout}, {found.where}: invariant {found.invariant}: {found.detail}"
        console.print(f"[red]{escape(told)}[/red]", highlight=False)
