"""The command line. Commands import what they need when they run, so that `rollout --help` answers at once."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from rollout.cli.parameters import Configuration, Debug, Json, Overrides, RunDir, debugging
from rollout.cli.policy import policy
from rollout.cli.serving import serve

app = typer.Typer(
    help="Rollouts for reinforcement learning of (multimodal) language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(serve, name="serve")
assets = typer.Typer(help="The images of a run on disk.", no_args_is_help=True)
app.add_typer(assets, name="assets")
queue = typer.Typer(help="Look into a queue by its URL, and empty it.", no_args_is_help=True)
app.add_typer(queue, name="queue")

app.add_typer(policy, name="policy")


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"rollout {version('rollout')}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Place = Literal["here", "ray", "slurm", "k8s"]


@app.command()
def run(config: Configuration, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Play all rollouts of CONFIG in this process: engine (if none is configured), worker, and a consuming reader.

    Exits with 0; 1 if the run failed or an invariant was violated; 2 for a bad configuration; 130 after Ctrl-C.
    """
    from rollout.cli.run import run_command

    raise typer.Exit(run_command(config, overrides or [], as_json=as_json))


@app.command()
def worker(
    config: Configuration,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Directory of the run to work for; by default run.directory/run.name.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
    supervisor_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    debug: Debug = False,
) -> None:
    """Play what is on the tasks queue of CONFIG (queue.tasks) until SIGTERM; several may work on one run.

    SIGTERM or Ctrl-C finishes what was begun within worker.grace seconds and gives back the rest; a second, at once.
    """
    from rollout.cli.worker import worker_command

    worker_command(config, overrides or [], run=run, name=name, supervisor_fd=supervisor_fd)


@app.command()
def launch(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CONFIG...", help="One YAML for each environment.", show_default=False),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes for each environment; 0: somebody else starts them.")
    ] = 1,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Begin the run in this directory; if it was begun there, go on with it."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with this run instead of beginning one.")
    ] = None,
    on: Annotated[Place, typer.Option(help="Where the workers run.")] = "here",
    render: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --on slurm or k8s: write what the scheduler is told there.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="With --on k8s: the image that has rollout installed.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Play all rollouts of every CONFIG with supervised worker processes; a trainer reads the queue meanwhile.

    Exits with 0, also after SIGTERM, which drains; 1 if it failed; 2 for a bad configuration; 130 after Ctrl-C, which
    drains too; a second Ctrl-C ends the workers at once. What was not finished is played by --resume.
    """
    if render is not None or image is not None or on in ("slurm", "k8s"):
        from rollout.cli.render import render_command

        if run is not None or resume is not None:
            raise typer.BadParameter("what is rendered begins a run of its own, called as --render's directory is.")
        raise typer.Exit(render_command(configs or [], overrides or [], workers=workers, on=on, to=render, image=image))
    from rollout.cli.launch import launch_command

    raise typer.Exit(
        launch_command(
            configs or [], overrides or [], workers=workers, run=run, resuming=resume, on=on, as_json=as_json
        )
    )


@app.command()
def doctor(
    config: Configuration,
    overrides: Overrides = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also examine the engines: model, tokens, endpoint, images.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check CONFIG without playing: the file, its environment and tasks, the tokenizer, the queue's URL.

    Exits with 0 if all is well, 2 for a bad configuration, 1 for an engine that is not what it should be.
    """
    from rollout.cli.doctor import doctor_command

    raise typer.Exit(doctor_command(config, overrides or [], live=live))


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.", show_default=False)],
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="Show this one as a conversation.", show_default=False)
    ] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by; -COLUMN sorts downwards.")] = "rollout",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Show only what meets it: status=failed, reward<0.5, error~Timeout."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write to this .jsonl or .parquet file instead.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run recorded: all its trajectories as a table, or one of them as a conversation.

    Columns: rollout, environment, group, attempt, status, reward, turns, images, tokens, sampled, versions, seconds and
    error.
    """
    from rollout.cli.inspect import inspect_command

    inspect_command(directory, rollout, sort=sort, filters=filters or [], export_to=export, as_json=as_json)


@assets.command("stats")
def assets_stats(run: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """How many images there are, of which kinds, and how large."""
    from rollout.cli.assets import stats_command

    raise typer.Exit(stats_command(run, as_json=as_json))


@assets.command("verify")
def assets_verify(run: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """Read every image and compare it with the hash in its name; exits with 1 if one is damaged."""
    from rollout.cli.assets import verify_command

    raise typer.Exit(verify_command(run, as_json=as_json))


@assets.command("gc")
def assets_gc(
    run: RunDir,
    grace: Annotated[float, typer.Option(min=0, help="Keep what is younger than so many seconds.")] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove images that no record refers to: neither an unacked one nor a kept trajectory.

    Refused while a process of the run lives.
    """
    from rollout.cli.assets import gc_command

    raise typer.Exit(gc_command(run, grace=grace, dry_run=dry_run, as_json=as_json))


QueueUrl = Annotated[
    str, typer.Argument(metavar="URL", help="Such as file:///runs/one/trajectories.", show_default=False)
]


@queue.command("stats")
def queue_stats(url: QueueUrl, as_json: Json = False, debug: Debug = False) -> None:
    """How much is in it, how old, how often it was delivered again, and how much was rejected."""
    from rollout.cli.queue import stats_command

    raise typer.Exit(stats_command(url, as_json=as_json))


@queue.command("peek")
def queue_peek(
    url: QueueUrl,
    limit: Annotated[int, typer.Option(min=1, help="Show so many records.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="Shorten nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show its oldest records decoded, without leasing or consuming them."""
    from rollout.cli.queue import peek_command

    raise typer.Exit(peek_command(url, limit=limit, full=full, as_json=as_json))


@queue.command("dead")
def queue_dead(
    url: QueueUrl,
    limit: Annotated[int, typer.Option(min=1, help="Show so many dead letters.")] = 100,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which records were rejected, and why."""
    from rollout.cli.queue import dead_command

    raise typer.Exit(dead_command(url, limit=limit, as_json=as_json))


@queue.command("requeue")
def queue_requeue(
    url: QueueUrl,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many.", show_default=False)] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put rejected records back as new ones, the first rejected first; by default all there are now."""
    from rollout.cli.queue import requeue_command

    raise typer.Exit(requeue_command(url, limit=limit, as_json=as_json))


@queue.command("drain")
def queue_drain(
    url: QueueUrl,
    lease: Annotated[
        Literal["partition", "record"], typer.Option(help="How its consumers share it: record for a queue of tasks.")
    ] = "partition",
    wait: Annotated[float, typer.Option(min=0, help="Seconds until what a dead consumer held is free.")] = 12.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Throw away everything that no other consumer holds."""
    from rollout.cli.queue import drain_command

    raise typer.Exit(drain_command(url, lease=lease, wait=wait, confirmed=yes, as_json=as_json))


def main() -> None:
    """The console script: one paragraph and an exit code instead of a traceback."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the last place where a failure can become a sentence
        code = _exit_code(error)
        if debugging["on"] or code is None:
            traceback.print_exc()
        else:
            sys.stderr.write(f"rollout: {error}\n")
        sys.exit(code or 1)


def _exit_code(error: Exception) -> int | None:
    """What a failure that we foresaw exits with; None for a bug, which deserves its traceback."""
    from renderers_adapter.errors import AdapterError
    from rollout.errors import RolloutError
    from transports import QueueError, QueueURLError, UnknownTransport

    if isinstance(error, RolloutError):
        return error.exit_code
    if isinstance(error, QueueURLError | UnknownTransport | AdapterError):
        return 2
    return 1 if isinstance(error, QueueError) else None
