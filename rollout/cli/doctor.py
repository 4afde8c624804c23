"""`rollout doctor`: a table of what was checked before a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rollout.cli.options import Configuration, Debug, Overrides
from rollout.cli.output import print_table, report_console
from rollout.cli.report_stream import report_stream

if TYPE_CHECKING:
    from rollout.doctor.results import CheckResult

_STATUS_MARKUP = {"ok": "[green]ok[/green]", "bad": "[red]bad[/red]", "?": "[yellow]?[/yellow]"}


def doctor(
    config: Configuration,
    overrides: Overrides = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also check the engines: model, tokens, endpoint, images.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check CONFIG without playing: the file, its environment and tasks, the tokenizer, the queue's URL.

    Exits with 0 if all checks pass, 2 if the configuration is bad, and 1 if an engine is bad.
    """
    from rollout.config.load import load_config
    from rollout.doctor.checks import run_checks
    from rollout.log import log_warnings_to_stderr

    report_stream.reserve()
    log_warnings_to_stderr()
    results, exit_code = run_checks(load_config(config, overrides or []), live=live)
    _print_results(results)
    raise typer.Exit(exit_code)


def _print_results(results: "Sequence[CheckResult]") -> None:
    rows = []
    for result in results:
        rows.append((_STATUS_MARKUP[result.status.value], result.subject, escape(result.message)))
        if result.fix:
            rows.append(("", "", f"[yellow]fix:[/yellow] {escape(result.fix)}"))
    print_table(report_console(), rows)
