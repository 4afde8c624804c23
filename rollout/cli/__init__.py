"""The command line: `rollout` and its commands, each in a module with its name."""

import errno
import io
import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from rollout.cli import assets, doctor, init, inspect, launch, logs, policy, queue, replay, run, serve, worker
from rollout.cli.command_group import CommandGroup
from rollout.cli.open_files import describe_missing_files
from rollout.cli.options import debugging
from rollout.cli.output import write_json_error
from rollout.cli.report_stream import report_stream
from rollout.import_path import describe_conflict

_INTERRUPTED = 130

app = typer.Typer(
    cls=CommandGroup,
    help="Rollouts for reinforcement learning of (multimodal) language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(init.init)
app.command()(run.run)
app.command()(worker.worker)
app.command()(launch.launch)
app.command()(doctor.doctor)
app.command()(inspect.inspect)
app.command()(replay.replay)
app.command()(logs.logs)
app.add_typer(serve.app, name="serve")
app.add_typer(assets.app, name="assets")
app.add_typer(queue.app, name="queue")
app.add_typer(policy.app, name="policy")


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"rollout {version('rollout-rl')}\n")
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a text may have characters that stdout's encoding lacks
    if os.getpid() == 1:
        # This is a container. Without a handler, the kernel drops a signal to process 1, and commands set theirs late.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = _run_command()
    failure = report_stream.close()
    if failure is not None and not isinstance(failure, BrokenPipeError) and not code:
        sys.stderr.write(f"rollout: cannot write to stdout: {failure.strerror}.\n")
    sys.exit(code or (0 if failure is None else 1))


def _run_command() -> int:
    """Run the command, and return its exit code. With `--json`, print a failure as JSON if there is no report."""
    try:
        app()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            write_json_error("interrupted")
        return int(ended.code or 0)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 - the last place that can print a failure as one paragraph
        code, message = _describe_failure(error)
        if debugging["on"] or code is None:
            traceback.print_exc()
        else:
            sys.stderr.write(f"rollout: {message}\n")
        write_json_error(message)
        return code or 1
    return 0


def _describe_failure(error: Exception) -> tuple[int | None, str]:
    """Return the exit code and the message of a failure. For a bug, which needs a traceback, the code is None."""
    from rollout.errors import RolloutError

    message = f"{type(error).__name__}: {error}"
    if not isinstance(error, RolloutError) and (conflict := describe_conflict(error)) is not None:
        return 2, f"{message}: {conflict}."

    from renderers_adapter.errors import AdapterError  # not earlier: a user's file may hide these packages
    from transports import QueueError, QueueURLError, UnknownTransport

    if (missing_files := describe_missing_files(error)) is not None:
        return 1, missing_files
    if isinstance(error, RolloutError):
        return error.exit_code, str(error)
    if isinstance(error, QueueURLError | UnknownTransport | AdapterError):
        return 2, str(error)
    is_disk_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return (1, str(error)) if is_disk_full or isinstance(error, QueueError) else (None, message)
