"""`rollout logs`: shows what the launch and the workers of a run logged and printed, as lines in order of time."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rollout.cli.options import Debug, RunDirOrParent, newest_run

if TYPE_CHECKING:
    from rollout.cli.logs_format import LineFormat
    from rollout.cli.logs_reading import RunLogs

_POLL_SECONDS = 0.25


def logs(
    run: RunDirOrParent,
    rollout: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Show only lines about this rollout, and what its program printed.", show_default=False
        ),
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        typer.Option(help="Show only lines of this level and above. A printed line counts as info."),
    ] = "debug",
    follow: Annotated[
        bool, typer.Option("--follow", help="Also show new lines until the run has ended, or until Ctrl-C.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what the launch and the workers of a run logged and printed, in order of time.

    With --rollout, also show what the agent program of this rollout printed, in the files output.txt and
    score-output.txt of each attempt. A printed line has no time. It is shown at the time of the last write to its file.
    """
    from rollout.cli.logs_format import LineFormat
    from rollout.cli.logs_reading import LogsError, RunLogs

    run = newest_run(run)
    run_logs = RunLogs(run, level=level, rollout=rollout)
    line_format = LineFormat.of_stdout()
    try:
        _show_new_lines(run_logs, line_format, is_last=not follow)
        while follow and not run_logs.has_ended():
            time.sleep(_POLL_SECONDS)
            _show_new_lines(run_logs, line_format, is_last=False)
        if follow:
            _show_new_lines(run_logs, line_format, is_last=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not run_logs.knows_rollout:
        raise LogsError(f"no log of {run} names the rollout {rollout!r}; `rollout inspect {run}` lists the rollouts.")


def _show_new_lines(run_logs: "RunLogs", line_format: "LineFormat", *, is_last: bool) -> None:
    for line in run_logs.read_new(is_last=is_last):
        sys.stdout.write(line_format.text_of(line, run_logs.longest_name))
    sys.stdout.flush()
