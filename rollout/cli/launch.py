"""`rollout launch`: what it is told, and the summary at its end; `launch_screen` shows it meanwhile."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout.cli.launch_screen import LaunchScreen
from rollout.cli.printing import tell_end
from rollout.errors import ConfigurationError, RolloutError
from rollout.launch.launch import LaunchState, run_launch
from rollout.launch.local import LocalPlace
from rollout.launch.places import Place
from rollout.rundir.manifest import can_resume, create_run, resume_run
from transports import QueueError

_ERRORS_SHOWN = 3


def launch_command(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    workers: int,
    run: Path | None,
    resuming: Path | None,
    on: str,
    as_json: bool,
) -> int:
    if bool(paths) == (resuming is not None) or (resuming is not None and run is not None):
        raise ConfigurationError("rollout launch: give the YAML of each environment, or --resume RUN_DIR alone.")
    if run is not None and can_resume(run):
        resuming = run
    if resuming is not None:
        directory, members = resume_run(resuming, overrides, paths)
    else:
        directory, members = create_run(paths, overrides, run)
    place = _place(on, workers * len(members))
    state = LaunchState(directory, members, workers, place, is_resumed=resuming is not None)
    screen = LaunchScreen(state, Console(stderr=True))
    failure: RolloutError | QueueError | None = None
    try:
        run_launch(state, screen.accompany)
    except (RolloutError, QueueError) as error:
        if not state.report()["rollouts"]:
            raise
        failure = error  # what was done before still counts, and is told first
    report = state.report()
    tell_end(report, partial(_print_summary, state, report), failure, as_json=as_json)
    if screen.interrupted:
        return 130
    return 0 if state.stopping_early or report["rollouts"] == report["total"] else 1


def _place(on: str, workers: int) -> Place:
    if on != "ray":
        return LocalPlace()
    if not workers:
        raise ConfigurationError("rollout launch --on ray: --workers says how many for each environment, at least 1.")
    from rollout.launch.ray import RayPlace

    return RayPlace(workers)


def _print_summary(state: LaunchState, report: Mapping[str, Any], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for environment in state.environments:
        found = report["environments"][environment.name]
        status = ", ".join(f"{count} {what}" for what, count in sorted(found["status"].items())) or "none finished"
        reward = "no reward" if found["reward_mean"] is None else f"reward {found['reward_mean']:.3f}"
        of = "" if environment.is_fed_externally else f" of {environment.total_rollouts}"
        done = f"{found['turns']:,} turns, {found['tokens']:,} tokens"
        told = f"{found['rollouts']}{of}  ({status})  {reward}, {done}"
        table.add_row(f"[dim]{escape(environment.name)}[/dim]", escape(told))
    deaths = (
        Counter(f"{death.environment}, {death.description}" for death in state.supervisor.deaths)
        if state.supervisor
        else {}
    )
    dead = "".join(f", {count} died ({what})" for what, count in deaths.items())
    table.add_row(
        "[dim]workers[/dim]",
        escape(f"{state.workers_per_environment} for each environment{dead}; {report['retries']} retries"),
    )
    table.add_row("[dim]run[/dim]", escape(str(state.directory.path)))
    table.add_row(
        "[dim]time[/dim]", f"{state.elapsed_seconds:.1f} s" + ("  (stopped early)" if state.stopping_early else "")
    )
    console.print(table, highlight=False)
    _print_errors(state, console)
    if report["rollouts"] < report["total"]:
        console.print(f"go on with: rollout launch --resume {state.directory.path}", highlight=False, soft_wrap=True)


def _print_errors(state: LaunchState, console: Console) -> None:
    """Each error once, in full, with the first rollout that met it."""
    met: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for environment, outcome in state.failed_rollouts():
        error = outcome.error or {}
        key = (str(error.get("type")), str(error.get("message")))
        met.setdefault(key, []).append((f"{environment}/{outcome.rollout}", outcome.traceback))
    for (kind, message), failed in list(met.items())[:_ERRORS_SHOWN]:
        rollout, traceback = failed[0]
        others = f" (and {len(failed) - 1} others)" if len(failed) > 1 else ""
        told = f"{kind}: {message}" if traceback is None else "\n" + indent(traceback.rstrip(), "  ")
        console.print(f"[red]{escape(f'{rollout}{others} failed: {told}')}[/red]", highlight=False, soft_wrap=True)
    if len(met) > _ERRORS_SHOWN:
        console.print(f"… and {len(met) - _ERRORS_SHOWN} other errors, all in {state.directory.path}/workers")
