"""`rollout replay`: the answers of a recorded rollout once more, through the environment's code as it is today."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.options import Debug, Json, RunDirOrParent, newest_run
from rollout.cli.output import write_json


def replay(
    directory: RunDirOrParent,
    rollout: Annotated[
        str, typer.Argument(metavar="ROLLOUT", help="The rollout, as `rollout inspect` names it.", show_default=False)
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="Play with the environment of this YAML instead of the one that the run wrote down."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that the environment may take.")] = 300.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Play the answers of a recorded rollout again, and say at which turn its environment says something else.

    The environment's code of today gets the recorded task, the settings of the run and, turn by turn, the recorded
    answers; no engine is needed. What it sends to the model is compared with the record, and at the end its score.
    After the first other message, the recorded answers answer nothing any more, so the replay ends there.

    Exits with 0 if all is the same; 1 if something is different; 2 if the rollout cannot be played again.
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
