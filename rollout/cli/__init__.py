"""The command line: `rollout` and its commands, each in the module of its name."""

import sys
import traceback
from typing import Annotated

import typer

from rollout.cli import assets, doctor, inspect, launch, policy, queue, run, serve, worker
from rollout.cli.options import debugging

app = typer.Typer(
    help="Rollouts for reinforcement learning of (multimodal) language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command()(worker.worker)
app.command()(launch.launch)
app.command()(doctor.doctor)
app.command()(inspect.inspect)
app.add_typer(serve.app, name="serve")
app.add_typer(assets.app, name="assets")
app.add_typer(queue.app, name="queue")
app.add_typer(policy.app, name="policy")


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


def main() -> None:
    """Run the command line, and print one paragraph instead of a traceback if it fails."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the last place where a failure can become one paragraph
        code = _exit_code(error)
        if debugging["on"] or code is None:
            traceback.print_exc()
        else:
            sys.stderr.write(f"rollout: {error}\n")
        sys.exit(code or 1)


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an expected failure; a bug has none, and is shown with its traceback."""
    from renderers_adapter.errors import AdapterError
    from rollout.errors import RolloutError
    from transports import QueueError, QueueURLError, UnknownTransport

    if isinstance(error, RolloutError):
        return error.exit_code
    if isinstance(error, QueueURLError | UnknownTransport | AdapterError):
        return 2
    return 1 if isinstance(error, QueueError) else None
