"""`rollout policy`: shows which weights the engines of a run have, and updates engines with other weights.

A trainer's publisher does this by itself. The command is for engines that are paused because their trainer died.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rollout.cli.command_group import CommandGroup
from rollout.cli.options import Configuration, Debug, Json, Overrides
from rollout.cli.output import print_table, report_console, write_json

if TYPE_CHECKING:
    from rollout.engine.errors import EngineError
    from rollout.engine.weight_updates import EngineState
    from rollout.trainer.weights.publisher import PublisherSettings

app = typer.Typer(cls=CommandGroup, help="Show and update the weights of a run's engines.", no_args_is_help=True)

Run = Annotated[Path, typer.Option("--run", metavar="RUN_DIR", help="The run's directory.", show_default=False)]


@app.command()
def status(
    config: Configuration, run: Run, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Show the version that was published last, and the version of each engine; exit with 1 if they differ."""
    from rollout.trainer.weights.directory import WeightsDirectory

    settings = _load_settings(config, run, overrides)
    saved = WeightsDirectory(Path(settings.weights)).saved_version
    published = saved.version if saved else None
    states = {url: _state_document(state, published) for url, state in _fetch_states(settings).items()}
    if as_json:
        write_json({"published": published, "engines": states})
    else:
        console, rows = report_console(), []
        line = f"published: {'none' if saved is None else f'version {published}'} in {settings.weights}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        for url, state in states.items():
            text = state.get("error") or f"version {state['version']}{', paused' if state['paused'] else ''}"
            rows.append(("ok" if state["sound"] else "bad", url, escape(text)))
        print_table(console, rows)
    raise typer.Exit(0 if all(state["sound"] for state in states.values()) else 1)


@app.command()
def push(
    config: Configuration, run: Run, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Load the last published version into each engine that has another one or is paused; exit with 1 if one fails."""
    from rollout.log import log_to_json_file
    from rollout.trainer.weights.publisher import PolicyPublisher

    # No control queues, because only the trainer may publish progress: it knows which rollouts were consumed.
    settings = replace(_load_settings(config, run, overrides), controls={})
    with log_to_json_file(run / "log.jsonl", run=run.name), PolicyPublisher(settings) as publisher:
        pushed = publisher.repair()
    if as_json:
        write_json({"version": pushed.version, "engines": list(pushed.engines), "behind": dict(pushed.behind)})
    else:
        rows = [("ok", url, f"version {pushed.version}") for url in pushed.engines]
        rows += [("bad", url, escape(reason)) for url, reason in pushed.behind.items()]
        print_table(report_console(), rows)
    raise typer.Exit(1 if pushed.behind else 0)


def _load_settings(config: Path, run: Path, overrides: Sequence[str] | None) -> "PublisherSettings":
    from rollout.config.load import load_config
    from rollout.errors import ConfigurationError
    from rollout.trainer.weights.from_config import publisher_settings

    if not run.is_dir():
        raise ConfigurationError(f"--run {run}: this is not a directory; give the directory of a run.")
    return publisher_settings([load_config(config, overrides or [])], run)


def _fetch_states(settings: "PublisherSettings") -> "Mapping[str, EngineState | EngineError]":
    import anyio

    from rollout.engine.httpx_transport import HttpxTransport
    from rollout.engine.weight_updates import fetch_engine_states

    async def fetch() -> "Mapping[str, EngineState | EngineError]":
        async with HttpxTransport(settings.api_key) as transport:
            return await fetch_engine_states(transport, settings.engines)

    return anyio.run(fetch)


def _state_document(state: "EngineState | EngineError", published: int | None) -> dict[str, Any]:
    """Return the state of an engine for `--json`. An engine is sound if it runs and has the published version."""
    if isinstance(state, Exception):
        return {"error": str(state), "sound": False}
    is_sound = not state.paused and published is not None and state.version == str(published)
    return {"version": state.version, "paused": state.paused, "sound": is_sound}
