"""`rollout launch`: a live table while it goes on, plain lines where there is no terminal, and a summary."""

import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import anyio
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rollout.cli.printing import tell_end
from rollout.errors import ConfigurationError, RolloutError
from rollout.launch import EnvironmentState, Launch, launch
from rollout.manifest import begin, resume, was_begun
from rollout.places import Place
from rollout.processes import LocalPlace
from transports import QueueError

_REFRESH = 0.5
_LINE_EVERY = 5.0
_ERRORS_SHOWN = 3
_COLUMNS = ("environment", "workers", "in flight", "done", "reward", "turns/s", "tokens/s", "failed", "backlog", "left")


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
    if run is not None and was_begun(run):
        resuming = run
    if resuming is not None:
        directory, members = resume(resuming, overrides, paths)
    else:
        directory, members = begin(paths, overrides, run)
    place = _place(on, workers * len(members))
    state = Launch(directory, members, workers, place, resumes=resuming is not None)
    screen = _Screen(state)
    failure: RolloutError | QueueError | None = None
    try:
        launch(state, screen.accompany)
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
    from rollout.fleet.ray_place import RayPlace

    return RayPlace(workers)


class _Screen:
    """Shows a launch, and passes signals on to it."""

    def __init__(self, state: Launch) -> None:
        self.interrupted = False
        self._state = state
        self._console = Console(stderr=True)
        self._rates = {environment.name: _Rate() for environment in state.environments}

    async def accompany(self, _: Launch) -> None:
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
                if not self._state.stopping_early:
                    self._tell_of_stopping()
                self._state.stop_early()

    def _tell_of_stopping(self) -> None:
        environments = self._state.environments
        in_flight = sum(environment.in_flight for environment in environments)
        grace = max(environment.member.config.worker.grace for environment in environments)
        told = f"stopping: {in_flight} rollouts in flight have {grace:g} s to finish; Ctrl-C (again) ends them now"
        self._console.print(told, highlight=False, soft_wrap=True)

    async def _show_table(self) -> None:
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while True:
                table = Table(*_COLUMNS, box=None, pad_edge=False)
                for environment in self._state.environments:
                    table.add_row(*(escape(cell) for cell in self._row(environment)))
                live.update(table, refresh=True)
                await anyio.sleep(_REFRESH)

    async def _show_lines(self) -> None:
        last = time.monotonic()
        while True:
            await anyio.sleep(_REFRESH)
            if time.monotonic() - last >= _LINE_EVERY:
                last = time.monotonic()
                for environment in self._state.environments:
                    cells = zip(_COLUMNS[1:], self._row(environment)[1:], strict=True)
                    told = "  ".join(f"{name} {cell}" for name, cell in cells)
                    self._console.print(f"{environment.name}: {told}", highlight=False, soft_wrap=True)

    def _row(self, environment: EnvironmentState) -> tuple[str, ...]:
        totals = environment.totals
        done = environment.done_before + totals["finished"]
        rate = self._rates[environment.name]
        rate.note(totals)
        return (
            environment.name,
            f"{environment.ready}/{len(environment.posts)}",
            str(environment.in_flight),
            f"{done}/{environment.total}",
            f"{totals['reward'] / totals['rewards']:.3f}" if totals["rewards"] else "",
            f"{rate.of('turns'):.1f}",
            f"{rate.of('tokens'):.0f}",
            str(totals["status.failed"]),
            f"{environment.backlog_bytes / 1e6:.1f} MB",
            _left(environment.total - done, rate.of("finished")),
        )


class _Rate:
    """What is done per second, over the last half minute."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, Counter[str]]] = []

    def note(self, totals: Counter[str]) -> None:
        now = time.monotonic()
        self._seen.append((now, totals))
        while self._seen[0][0] < now - 30 and len(self._seen) > 2:
            del self._seen[0]

    def of(self, name: str) -> float:
        (since, before), (now, after) = self._seen[0], self._seen[-1]
        return (after[name] - before[name]) / (now - since) if now > since else 0.0


def _left(rollouts: int, rate: float) -> str:
    if not rate:
        return ""
    seconds = int(rollouts / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _print_summary(state: Launch, report: Mapping[str, Any], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, found in report["environments"].items():
        status = ", ".join(f"{count} {what}" for what, count in sorted(found["status"].items())) or "none finished"
        reward = "no reward" if found["reward_mean"] is None else f"reward {found['reward_mean']:.3f}"
        total = next(environment.total for environment in state.environments if environment.name == name)
        done = f"{found['turns']:,} turns, {found['tokens']:,} tokens"
        told = f"{found['rollouts']} of {total}  ({status})  {reward}, {done}"
        table.add_row(f"[dim]{escape(name)}[/dim]", escape(told))
    deaths = Counter(f"{death.environment} {death.code}" for death in state.fleet.deaths) if state.fleet else {}
    dead = "".join(f", {count} died ({what})" for what, count in deaths.items())
    table.add_row(
        "[dim]workers[/dim]", escape(f"{state.workers} for each environment{dead}; {report['retries']} retries")
    )
    table.add_row("[dim]run[/dim]", escape(str(state.directory.path)))
    table.add_row("[dim]time[/dim]", f"{state.seconds:.1f} s" + ("  (stopped early)" if state.stopping_early else ""))
    console.print(table, highlight=False)
    _print_errors(state, console)
    if report["rollouts"] < report["total"]:
        console.print(f"go on with: rollout launch --resume {state.directory.path}", highlight=False, soft_wrap=True)


def _print_errors(state: Launch, console: Console) -> None:
    """Each error once, in full, with the first rollout that met it."""
    met: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for environment, outcome in state.failed():
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
