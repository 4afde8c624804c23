"""`rollout doctor`: a table of what was checked before a run."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rollout.cli.options import Configuration, Debug, Json, Overrides
from rollout.cli.output import print_table, report_console, write_json
from rollout.cli.report_stream import report_stream

if TYPE_CHECKING:
    from rollout.config.load import Config
    from rollout.doctor.results import CheckResult

_BAD_CONFIGURATION = 2
"""The exit code for a bad configuration."""
_STATUS_MARKUP = {
    "ok": "[green]ok[/green]",
    "bad": "[red]bad[/red]",
    "unknown": "[yellow]?[/yellow]",
    "nothing": "[dim]-[/dim]",
}


def doctor(
    config: Configuration,
    overrides: Overrides = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also check the engines: weights, tokenizer, chat template, images, pixels.")
    ] = False,
    forward: Annotated[
        bool,
        typer.Option(
            "--forward", help="Like --live, and also compare the engines' log-probs with those of the checkpoint."
        ),
    ] = False,
    agent: Annotated[
        bool, typer.Option("--agent", help="Also play the agent program, and say whether it can be trained.")
    ] = False,
    agent_timeout: Annotated[
        float, typer.Option(min=1.0, help="With --agent: seconds for a program to end, or to get to its fault.")
    ] = 60.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check CONFIG without a run: the file, its environment and tasks, the tokenizer, the queues, the disk.

    With --agent, the first task is played five times against a script: once as usual, and with errors and lost
    connections. The last line says yes or no.

    ok: proven. bad: wrong. ?: could not be checked. -: nothing to check, or not asked for.

    Exits with 0 if every check that was asked for is ok, and with 2 if the configuration is bad: run and launch would
    end with 2, too. Exits with 1 if something else is bad, and with 3 if nothing is bad, but a check could not be made.
    """
    from rollout.config.load import load_config
    from rollout.doctor.checks import run_checks
    from rollout.doctor.results import exit_code
    from rollout.log import log_warnings_to_stderr

    report_stream.reserve()
    log_warnings_to_stderr()
    loaded = load_config(config, overrides or [])
    report: dict[str, Any] = {}
    with _ended_by_signals():
        results = run_checks(loaded, live=live or forward, forward=forward, on_progress=_print_progress)
        code = exit_code(results)
        if agent:
            agent_results, agent_code = _check_agent(loaded, code, agent_timeout)
            results, code = results + agent_results, _more_serious(code, agent_code)
            report["agent"] = _describe_verdict(agent_results[-1], agent_code)
    if as_json:
        write_json({"ok": code == 0, "exit_code": code, "checks": [_to_dict(result) for result in results], **report})
    else:
        _print_results(results)
    raise typer.Exit(code)


def _describe_verdict(last: "CheckResult", exit_code: int) -> dict[str, Any]:
    """Return whether the agent can be trained: true, false, or null if it was not played."""
    return {"can_be_trained": None if exit_code == _BAD_CONFIGURATION else exit_code == 0, "verdict": last.message}


def _to_dict(result: "CheckResult") -> dict[str, Any]:
    return {
        "subject": result.subject,
        "status": result.status.value,
        "message": result.message,
        "fix": result.fix,
    }


def _more_serious(*codes: int) -> int:
    """Return the exit code that says most: 2 before 1, 3 and 0."""
    return next((code for code in (_BAD_CONFIGURATION, 1, 3) if code in codes), 0)


def _check_agent(config: "Config", exit_code: int, seconds: float) -> "tuple[list[CheckResult], int]":
    """Play the agent, unless the configuration is bad; return the rows and the exit code."""
    from rollout.doctor.agent.checking import check_agent
    from rollout.doctor.agent.playing import PlayLimits
    from rollout.doctor.results import CheckResult, CheckStatus

    if exit_code == _BAD_CONFIGURATION:
        return [CheckResult("agent", "not checked: first correct the errors above", CheckStatus.UNKNOWN)], exit_code
    return check_agent(config, _print_progress, PlayLimits(seconds=seconds))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the checks like Ctrl-C, so that they remove what they made.

    A shell starts commands in the background with SIGINT ignored, so it gets its handler back, too.
    """
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    terminated = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminated)
        signal.signal(signal.SIGINT, interrupted)


def _print_progress(line: str) -> None:
    sys.stderr.write(f"rollout: {line}\n")
    sys.stderr.flush()


def _print_results(results: "Sequence[CheckResult]") -> None:
    rows = []
    for result in results:
        rows.append((_STATUS_MARKUP[result.status.value], result.subject, escape(result.message)))
        if result.fix:
            rows.append(("", "", f"[yellow]fix:[/yellow] {escape(result.fix)}"))
    print_table(report_console(), rows)
