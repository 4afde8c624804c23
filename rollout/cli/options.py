"""The arguments and options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.report_stream import report_stream

debugging = {"on": False}
"""Whether an error that ends the command is shown with its traceback; --debug changes nothing else."""


def _set_debug(value: bool) -> None:
    debugging["on"] = value


def _set_json(value: bool) -> bool:
    report_stream.as_json = value
    if value:
        report_stream.reserve()
    return value


Configuration = Annotated[Path, typer.Argument(metavar="CONFIG", help="The environment's YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as engine.sampling.temperature=0."),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error that ends the command.")
]
Json = Annotated[
    bool, typer.Option("--json", callback=_set_json, help="Print one JSON object on stdout instead of text.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.", show_default=False)]
RunDirOrParent = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_DIR", help="The run's directory, or one with runs, for the newest run.", show_default=False
    ),
]


def newest_run(directory: Path) -> Path:
    """Return the directory if it belongs to a run; otherwise return the newest run in it, and name it on stderr."""
    runs = [] if _is_run(directory) else [path for path in directory.glob("*/") if _is_run(path)]
    if not runs:
        return directory
    newest = max(runs, key=lambda path: path.stat().st_mtime)
    sys.stderr.write(f"{newest}, the newest of {len(runs)} runs in {directory}\n")
    return newest


def _is_run(directory: Path) -> bool:
    return (directory / "workers").is_dir()
