"""`rollout policy`: which weights the engines of a run have, and bringing them to those that do not.

A trainer's publisher does this by itself. By hand it is for engines that stand still because their trainer died.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.cli.parameters import Configuration, Debug, Json, Overrides

if TYPE_CHECKING:
    from rollout.engine.errors import EngineError
    from rollout.engine.weight_updates import EngineState
    from rollout.trainer.weights.publisher import PublisherSettings

policy = typer.Typer(help="The weights that the engines of a run have.", no_args_is_help=True)

Run = Annotated[Path, typer.Option("--run", metavar="RUN_DIR", help="The run's directory.", show_default=False)]


@policy.command()
def status(
    config: Configuration, run: Run, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Say which version was published last, and which one each engine has; exits with 1 if one has another."""
    from rollout.cli.printing import write_json
    from rollout.trainer.weights.directory import WeightsDirectory

    settings = _settings(config, run, overrides)
    edition = WeightsDirectory(settings.weights).saved_version
    states = _asked(settings)
    sound = {url: _sound(state, edition.version if edition else None) for url, state in states.items()}
    if as_json:
        engines = {url: {**_told(state), "sound": sound[url]} for url, state in states.items()}
        write_json({"published": edition.version if edition else None, "engines": engines})
    else:
        sys.stdout.write(f"published: {f'version {edition.version}' if edition else 'none'} in {settings.weights}\n")
        for url, state in states.items():
            told = _told(state)
            named = told.get("error") or f"version {told['version']}{', paused' if told['paused'] else ''}"
            sys.stdout.write(f"{'ok ' if sound[url] else 'bad'}  {url}  {named}\n")
    raise typer.Exit(0 if all(sound.values()) else 1)


@policy.command()
def push(
    config: Configuration, run: Run, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Bring the version that was published last to engines that have another, or stand still; 1 if some cannot be."""
    from rollout.cli.printing import write_json
    from rollout.log import log_to_json_file
    from rollout.trainer.weights.publisher import PolicyPublisher

    # What of the rollouts was consumed only the trainer knows; it has announced the version, or will.
    settings = replace(_settings(config, run, overrides), controls={})
    with log_to_json_file(run / "log.jsonl", run=run.name), PolicyPublisher(settings) as publisher:
        pushed = publisher.repair()
    if as_json:
        write_json({"version": pushed.version, "engines": list(pushed.engines), "behind": dict(pushed.behind)})
    else:
        for url in pushed.engines:
            sys.stdout.write(f"ok   {url}  version {pushed.version}\n")
        for url, why in pushed.behind.items():
            sys.stdout.write(f"bad  {url}  {why}\n")
    raise typer.Exit(1 if pushed.behind else 0)


def _settings(config: Path, run: Path, overrides: Sequence[str] | None) -> "PublisherSettings":
    from rollout.config.load import load_config
    from rollout.errors import ConfigurationError
    from rollout.trainer.weights.from_config import publisher_settings

    if not run.is_dir():
        raise ConfigurationError(f"{run} is not the directory of a run.")
    return publisher_settings([load_config(config, overrides or [])], run)


def _asked(settings: "PublisherSettings") -> "Mapping[str, EngineState | EngineError]":
    import anyio

    from rollout.engine.http import EngineHttp
    from rollout.engine.weight_updates import fetch_engine_states

    async def ask() -> "Mapping[str, EngineState | EngineError]":
        async with EngineHttp(settings.api_key) as http:
            return await fetch_engine_states(http, settings.engines)

    return anyio.run(ask)


def _sound(state: "EngineState | EngineError", version: int | None) -> bool:
    told = _told(state)
    return "error" not in told and not told["paused"] and version is not None and told["version"] == str(version)


def _told(state: "EngineState | EngineError") -> dict[str, Any]:
    return {"error": str(state)} if isinstance(state, Exception) else {"version": state.version, "paused": state.paused}
