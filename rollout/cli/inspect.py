"""`rollout inspect`: shows what a run recorded, as a table, as one conversation, or as a file for other tools."""

import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rollout.cli.options import Debug, Json, RunDirOrParent, newest_run
from rollout.cli.output import write_json

if TYPE_CHECKING:
    from rollout.cli.inspect_prompts import ChangedText
    from rollout.trainer import Trajectory


def inspect(
    directory: RunDirOrParent,
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="Show this rollout as a conversation.", show_default=False)
    ] = None,
    sort: Annotated[str, typer.Option(help="The column to sort by; -COLUMN sorts in descending order.")] = "rollout",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Show only matching rollouts: status=failed, reward<0.5, error~Timeout."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write them to this .jsonl or .parquet file instead.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="With ROLLOUT: also show the schemas of its tools, and shorten nothing.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run recorded: all its trajectories as a table, or one of them as a conversation.

    Below a conversation are the end of what its program printed, and the other files of this attempt.

    Columns: rollout, environment, group, attempt, status, limit, reward, turns, images (an image in two messages counts
    once), tokens, sampled, rendered, versions, seconds and error. The column rendered
    counts later turns whose prompt is not bridged. A terminal shows the columns that fit. A pipe gets all columns,
    separated by tabs.
    """
    import anyio

    from rollout.cli.inspect_rows import parse_condition, read_rows, read_trajectories, sort_rows, summarize_rows
    from rollout.trainer.reading.archive import find_trajectory

    directory = newest_run(directory)
    conditions = [parse_condition(text) for text in filters or []]
    sort_rows([], sort)  # raises an error for an unknown column before the run is read
    if rollout is not None:
        _print_trajectory(directory, anyio.run(find_trajectory, directory, rollout), full=full, as_json=as_json)
    elif export is not None:
        from rollout.cli.inspect_export import write_trajectories

        count = anyio.run(write_trajectories, read_trajectories(directory, conditions), export)
        sys.stderr.write(f"{count} trajectories in {export}\n")
    else:
        rows = sort_rows(anyio.run(read_rows, directory, conditions), sort)
        if as_json:
            write_json({"run_dir": str(directory), **summarize_rows(rows), "rows": [asdict(row) for row in rows]})
        else:
            from rollout.cli.inspect_table import print_table, write_lines

            if sys.stdout.isatty():
                print_table(rows, Console())
            else:
                write_lines(rows)


def _print_trajectory(directory: Path, trajectory: "Trajectory", *, full: bool, as_json: bool) -> None:
    from rollout.cli.inspect_artifacts import artifact_documents, artifact_lines, artifacts_directory
    from rollout.cli.inspect_rows import find_traceback
    from rollout.texts import escape_controls

    traceback = find_traceback(directory, trajectory)
    changed_texts = _find_changed_texts(directory, trajectory)
    artifacts = artifacts_directory(directory, trajectory)
    if as_json:
        from rollout.cli.inspect_export import trajectory_document

        found = {"traceback": traceback, "artifacts": artifact_documents(artifacts)}
        write_json({**trajectory_document(trajectory, changed_texts), **found})
        return
    from rollout.cli.inspect_conversation import conversation_lines

    lines = chain(
        conversation_lines(trajectory, traceback, full=full, changed_texts=changed_texts),
        artifact_lines(artifacts, full=full),
    )
    for line in lines:
        sys.stdout.write(f"{escape_controls(line)}\n")


def _find_changed_texts(directory: Path, trajectory: "Trajectory") -> "dict[int, ChangedText]":
    """Return the earlier text that the chat template changed; none, with a line on stderr, without the tokenizer."""
    from rollout.cli.inspect_prompts import TokenizerNotFound, find_changed_texts, has_changed_text, open_decoder

    if not has_changed_text(trajectory):
        return {}
    try:
        decode = open_decoder(directory, trajectory.environment)
    except TokenizerNotFound as error:
        sys.stderr.write(f"rollout: the earlier text that changed is not shown: {error}\n")
        return {}
    return find_changed_texts(trajectory, decode)
