"""`rollout queue`: shows the records of any queue by its URL, puts rejected records back, or removes all records."""

import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.filesize import decimal
from rich.markup import escape

from rollout.cli.command_group import CommandGroup
from rollout.cli.options import Debug, Json
from rollout.cli.output import print_table, report_console, write_json

if TYPE_CHECKING:
    from transports import DeadLetter, Peeked

app = typer.Typer(cls=CommandGroup, help="Look into a queue by its URL, or empty it.", no_args_is_help=True)

QueueUrl = Annotated[
    str,
    typer.Argument(metavar="URL", help="The queue's URL, such as file:///runs/one/trajectories.", show_default=False),
]


@app.command()
def stats(url: QueueUrl, as_json: Json = False, debug: Debug = False) -> None:
    """Show how many records wait, are retained, were redelivered or rejected, and how long the oldest has waited."""
    import anyio

    from rollout.cli.queue_access import read_stats

    _, found = anyio.run(read_stats, url)
    if as_json:
        write_json(asdict(found))
        return
    rows = [
        ("waiting", f"{found.backlog_records:,} records, {decimal(found.backlog_bytes)}"),
        ("retained", f"{found.retained_records:,} acked records"),
        ("oldest waiting", _format_age(found.oldest_age) if found.backlog_records else "-"),
        ("redeliveries", f"{found.redeliveries:,}"),
        ("dead letters", f"{found.dead_letters:,}"),
    ]
    if found.refused_messages:
        rows.append(("refused", f"{found.refused_messages:,} messages; the log of the hub names senders and reasons"))
    print_table(report_console(), rows)


@app.command()
def peek(
    url: QueueUrl,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many records.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="Shorten nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the oldest waiting records decoded, without leasing or consuming them.

    If no record waits, show the oldest acked records that the queue retains (`?retain=true`).
    """
    import anyio

    from rollout.cli.queue_access import peek_records

    records, found = anyio.run(peek_records, url, limit)
    if as_json:
        documents = [_record_document(record, full=full) for record in records]
        write_json({"waiting": found.backlog_records, "retained": found.retained_records, "records": documents})
        return
    if records and not found.backlog_records:
        sys.stdout.write(f"no record waits; {found.retained_records:,} acked records are retained\n\n")
    for record in records:
        for line in _record_lines(record, full=full):
            sys.stdout.write(f"{line}\n")
    if not records:
        sys.stdout.write("the queue is empty\n")


@app.command()
def dead(
    url: QueueUrl,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many dead letters.")] = 100,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which records were rejected, and why."""
    import anyio

    from rollout.cli.queue_access import read_dead_letters

    dead_letters, total = anyio.run(read_dead_letters, url, limit)
    letters = [_letter_document(letter) for letter in dead_letters]
    if as_json:
        write_json({"dead_letters": total, "letters": letters})
        return
    console = report_console()
    if letters:
        rows = [(escape(letter["tag"]), decimal(letter["bytes"]), escape(letter["reason"])) for letter in letters]
        headings = tuple(f"[dim]{name}[/dim]" for name in ("tag", "size", "reason"))
        print_table(console, [headings, *rows])
    more = f"; the first {len(letters):,} are shown" if len(letters) < total else ""
    console.print(f"{total:,} dead letters{more}", highlight=False)


@app.command()
def requeue(
    url: QueueUrl,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Put back at most this many; by default all.", show_default=False)
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put rejected records back as new records, in the order in which they were rejected."""
    import anyio

    from rollout.cli.queue_access import requeue_dead_letters

    requeued, left = anyio.run(requeue_dead_letters, url, limit)
    if as_json:
        write_json({"requeued": requeued, "dead_letters": left})
    else:
        sys.stdout.write(f"{requeued:,} dead letters put back as new records; {left:,} are left\n")


@app.command()
def drain(
    url: QueueUrl,
    lease: Annotated[
        Literal["partition", "record"], typer.Option(help="What consumers lease; record for a queue of tasks.")
    ] = "partition",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the records of a dead consumer.")] = 12.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove all records that no other consumer has leased."""
    import anyio

    from rollout.cli.queue_access import drain_records

    if not yes:
        _confirm_drain(url)
    drained, left = anyio.run(drain_records, url, lease, wait)
    if as_json:
        write_json({"drained": drained, "left": left})
        return
    kept = f"; {left:,} are left: another consumer has leased them, or they are new" if left else ""
    sys.stdout.write(f"{drained:,} records removed{kept}\n")


def _confirm_drain(url: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("drain removes records. It asks for confirmation only on a terminal; give --yes.")
    import anyio

    from rollout.cli.queue_access import read_stats

    shown_url, found = anyio.run(read_stats, url)
    size = f"{found.backlog_records:,} records ({decimal(found.backlog_bytes)})"
    typer.confirm(f"Remove the {size} of {shown_url}?", abort=True, err=True)


def _record_document(record: "Peeked", *, full: bool) -> dict[str, Any]:
    from rollout.cli.queue_records import printable, to_readable
    from transports.base import frames_nbytes

    readable = to_readable(record.frames, full=full)
    return {
        "partition": record.partition,
        "position": record.position,
        "delivered": record.delivered,
        "retained": record.acked,
        "key": printable(record.key),
        "tag": printable(record.tag),
        "bytes": frames_nbytes(record.frames),
        "frames": len(record.frames),
        "kind": readable.kind,
        "rollout": readable.rollout,
        "content": readable.content,
    }


def _record_lines(record: "Peeked", *, full: bool) -> list[str]:
    from rollout.cli.queue_records import printable, yaml_lines

    document = _record_document(record, full=full)
    name = document["rollout"] or document["tag"] or document["key"]
    size = f"{decimal(document['bytes'])} in {document['frames']} frame{'s' if document['frames'] > 1 else ''}"
    place = f"partition {document['partition']}, position {document['position']}"
    state = ["retained"] if record.acked else ["delivered"] if record.delivered else []
    facts = [document["kind"], name, size, place, f"key {document['key']}", *state]
    content = (f"    {line}" for line in yaml_lines(document["content"]))
    return ["  ".join(printable(fact) for fact in facts), *content, ""]


def _letter_document(letter: "DeadLetter") -> dict[str, Any]:
    from rollout.cli.queue_records import printable
    from transports.base import frames_nbytes

    return {
        "reason": printable(letter.reason),
        "tag": printable(letter.tag),
        "key": printable(letter.key),
        "bytes": frames_nbytes(letter.frames),
    }


def _format_age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
