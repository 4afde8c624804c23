"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

debugging = {"on": False}
"""Whether a failure is shown with its traceback."""


def _set_debug(value: bool) -> None:
    debugging["on"] = value


Configuration = Annotated[Path, typer.Argument(metavar="CONFIG", help="The environment's YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as engine.sampling.temperature=0."),
]
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.", show_default=False)]
