"""`rollout run`: all rollouts of one configuration in this process, and a summary at the end."""

from functools import partial
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from rollout.cli.options import Configuration, Debug, Json, Overrides
from rollout.cli.output import RolloutFailure, print_failures, print_report

if TYPE_CHECKING:
    from rollout.launch.in_process import RunState

_MAX_VIOLATIONS_SHOWN = 3


def run(config: Configuration, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Play all rollouts of CONFIG in this process: engine (if none is configured), worker, and a consuming reader.

    Exits with 0; 1 if the run failed or an invariant was violated; 2 for a bad configuration; 130 after Ctrl-C.
    """
    from rollout.cli.run_screen import show_run
    from rollout.config.load import load_config
    from rollout.errors import RolloutError
    from rollout.launch.in_process import prepare_run, run_in_process
    from transports import QueueError

    settings = load_config(config, overrides or [])
    state = prepare_run(settings)
    failure: RolloutError | QueueError | None = None
    try:
        run_in_process(settings, state, show_run)
    except (RolloutError, QueueError) as error:
        if not state.trainer_counters.trajectories:
            raise
        failure = error  # what was done before still counts, and is printed first
    print_report(state.report(), partial(_print_summary, state), failure, as_json=as_json)
    raise typer.Exit(_exit_code(state))


def _exit_code(state: "RunState") -> int:
    if state.interrupted:
        return 130
    return 0 if state.trainer_counters.rewards and not state.trainer_counters.violations else 1


def _print_summary(state: "RunState", console: Console) -> None:
    from rollout.session.prompt import summarize_prompt_sources

    report, trainer = state.report(), state.trainer_counters
    status = ", ".join(f"{count} {name}" for name, count in sorted(report["status"].items())) or "none finished"
    reward = "none" if report["reward_mean"] is None else f"[bold]{report['reward_mean']:.3f}[/bold]"
    metrics = "".join(f"  {name} {total / len(trainer.rewards):.3f}" for name, total in sorted(trainer.metrics.items()))
    violations = len(trainer.violations)
    verdict = "[green]0 violations[/green]" if not violations else f"[red]{violations} violations[/red]"
    seconds = state.elapsed_seconds or 1e-9
    bytes_per_turn = f"  ({report['queue_bytes'] / report['turns']:.0f} a turn)" if report["turns"] else ""
    rows = [
        ("rollouts", f"{report['rollouts']} of {state.total_rollouts}  ({status})"),
        ("reward", f"{reward}{escape(metrics)}"),
        ("turns", f"{report['turns']:,}  ({report['turns'] / seconds:.0f}/s, {report['images']:,} images)"),
        ("prompts", summarize_prompt_sources(state.worker_counters.prompt_sources)),
        ("queue", f"{report['queue_bytes']:,} bytes{bytes_per_turn}"),
        ("trainer", f"{trainer.groups} groups, {trainer.samples} samples, {trainer.tokens:,} tokens, {verdict}"),
        ("engine", escape(state.engine_description)),
        ("run", escape(str(state.directory.path))),
        ("time", f"{state.elapsed_seconds:.1f} s" + ("  (stopped early)" if state.interrupted else "")),
    ]
    for name, value in rows:
        console.print(f"[dim]{name:<8}[/dim]  {value}", highlight=False, soft_wrap=True)
    _print_errors(state, console)


def _print_errors(state: "RunState", console: Console) -> None:
    from rollout.rundir.claims import Claims

    trainer = state.trainer_counters
    if trainer.failures:
        claims = Claims(state.directory.claims_path(trainer.failures[0].environment))
        outcomes = {outcome.rollout: outcome for outcome in claims.outcomes()}
        failures = []
        for trajectory in trainer.failures:
            outcome = outcomes.get(trajectory.rollout)
            traceback = outcome.traceback if outcome is not None else None
            failures.append(
                RolloutFailure(trajectory.rollout, trajectory.status.value, trajectory.error or {}, traceback)
            )
        print_failures(console, failures, state.directory.path / "log.jsonl")
    for violation in trainer.violations[:_MAX_VIOLATIONS_SHOWN]:
        line = f"{violation.rollout}, {violation.where}: invariant {violation.invariant}: {violation.detail}"
        console.print(f"[red]{escape(line)}[/red]", highlight=False)
