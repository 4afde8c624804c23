"""`rollout replay`: plays the answers of a recorded rollout again, with the current code of the environment."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.options import Debug, Json, RunDirOrParent, newest_run
from rollout.cli.output import write_json


def replay(
    directory: RunDirOrParent,
    rollout: Annotated[
        str, typer.Argument(metavar="ROLLOUT", help="The rollout's name in `rollout inspect`.", show_default=False)
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Use the environment of this YAML instead of the one that the run saved."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that the environment may take.")] = 300.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Play the answers of a recorded rollout again, and show the turn at which its environment differs.

    The current code of the environment gets the recorded task, the settings of the run and, turn by turn, the recorded
    answers; no engine is needed. Its messages to the model and its score are compared with the record. The replay ends
    at the first different message, because later answers do not fit it.

    Exits with 0 if all is the same, 1 if something is different, and 2 if the rollout cannot be played again.
    """
    from rollout.log import log_warnings_to_stderr
    from rollout.testing.replaying import replay_at_once

    log_warnings_to_stderr()
    directory = newest_run(directory)
    report = replay_at_once(directory, rollout, config=config, timeout=timeout)
    if as_json:
        write_json({"run_dir": str(directory), **report.to_dict()})
    else:
        sys.stdout.write(f"{report}\n")
    if not report.same:
        raise typer.Exit(1)
