"""`rollout run`: plays all rollouts of one configuration in this process, and prints a summary at the end."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from rollout.cli.open_files import require_open_files
from rollout.cli.options import Configuration, Debug, Json, Overrides
from rollout.cli.output import (
    describe_retries,
    list_means,
    print_errors,
    print_report,
    print_table,
    print_wrapped,
    warn_of_close_failures,
    warn_of_passwords,
    with_errors,
)
from rollout.cli.report_stream import report_stream

if TYPE_CHECKING:
    from rollout.config.load import Config
    from rollout.launch.in_process import RunState
    from rollout.rundir.outcomes import DistinctError

_MAX_VIOLATIONS_SHOWN = 3


def run(config: Configuration, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Play all rollouts of CONFIG in this process, with a worker, a reader, and an engine if none is configured.

    Exits with 0 after success. Exits with 1 if the run failed, if no rollout got a reward, if more failed than
    run.max_failed allows, or if an invariant was violated. Exits with 2 for a bad configuration, and with 130 after
    Ctrl-C.
    """
    from rollout.cli.run_screen import show_run
    from rollout.config.load import load_config
    from rollout.errors import RolloutError
    from rollout.launch.in_process import prepare_run, run_in_process
    from transports import QueueError

    report_stream.reserve()
    require_open_files()
    settings = load_config(config, overrides or [])
    warn_of_passwords([settings])
    state = prepare_run(settings)
    failure: RolloutError | QueueError | None = None
    try:
        run_in_process(settings, state, show_run)
    except (RolloutError, QueueError) as error:
        if not state.trainer_counters.trajectories:
            raise
        failure = error  # the summary of the finished rollouts is printed first
    errors = state.totals.errors.distinct()
    report = with_errors(state.report(), errors)
    print_report(report, partial(_print_summary, state, settings, errors), failure, as_json=as_json)
    raise typer.Exit(_exit_code(state))


def _exit_code(state: "RunState") -> int:
    if state.interrupted:
        return 130
    return 0 if state.totals.reward_mean is not None and not state.trainer_counters.violations else 1


def _print_summary(state: "RunState", config: "Config", errors: "Sequence[DistinctError]", console: Console) -> None:
    from rollout.records.gateway_counts import summarize_gateway
    from rollout.records.prompt_counts import summarize_prompts
    from rollout.rundir.limits import warn_if_all_limited
    from rollout.rundir.missing_turns import warn_if_no_turns

    report, trainer = state.report(), state.trainer_counters
    status = ", ".join(f"{count} {name}" for name, count in sorted(report["status"].items())) or "none finished"
    reward = "none" if report["reward_mean"] is None else f"[bold]{report['reward_mean']:.3f}[/bold]"
    named = list_means(report["rewards"] | report["metrics"])
    violations = len(trainer.violations)
    verdict = ", [green]all checks passed[/green]" if trainer.samples else ""
    if violations:
        verdict = f", [red]{violations} failed checks[/red]"
    seconds = state.elapsed_seconds or 1e-9
    bytes_per_turn = f"  ({report['queue_bytes'] / report['turns']:.0f} a turn)" if report["turns"] else ""
    rows = [
        ("rollouts", f"{report['rollouts']} of {state.total_rollouts}  ({status})"),
        ("reward", f"{reward}{escape(named)}"),
        ("turns", f"{report['turns']:,}  ({report['turns'] / seconds:.0f}/s, {report['images']:,} different images)"),
        ("prompts", summarize_prompts(state.totals.prompts)),
        ("queue", f"{report['queue_bytes']:,} bytes{bytes_per_turn}"),
        ("trainer", f"{trainer.groups} groups, {trainer.samples} samples, {trainer.tokens:,} tokens{verdict}"),
        ("engine", escape(state.engine_description)),
        ("run", escape(str(state.directory.path))),
        ("time", f"{state.elapsed_seconds:.1f} s" + ("  (stopped early)" if state.interrupted else "")),
    ]
    if (gateway := summarize_gateway(state.totals.gateway)) is not None:
        rows.insert(4, ("gateway", escape(gateway)))
    if state.rows_used is not None:
        rows.insert(1, ("tasks", escape(str(state.rows_used))))
    if report["retries"] or report["request_retries"]:
        rows.append(("repeated", escape(describe_retries(report))))
    print_table(console, [(f"[dim]{name}[/dim]", value) for name, value in rows])
    if (warning := warn_if_all_limited(report["limits"], report["status"], config)) is not None:
        print_wrapped(console, warning, "yellow")
    if (warning := warn_of_close_failures(report)) is not None:
        print_wrapped(console, warning, "yellow")
    print_errors(console, errors, state.directory.path)
    for violation in trainer.violations[:_MAX_VIOLATIONS_SHOWN]:
        line = f"{violation.rollout}, {violation.where}: check {violation.invariant} failed: {violation.detail}"
        print_wrapped(console, line, "red")
    if (warning := warn_if_no_turns(report)) is not None:
        print_wrapped(console, warning, "yellow")
