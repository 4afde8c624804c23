"""`rollout queue`: look into any queue by its URL, give rejected records another chance, or empty it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import anyio
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from rollout.cli.printing import write_json
from rollout.cli.queue_records import lines, printable, readable
from transports import Delivery, Lease, Peeked, Queue, QueueStats, QueueURLError, open_queue
from transports.base import frames_nbytes
from transports.urls import split_url

_ACKED_AT_ONCE = 32


def stats_command(url: str, *, as_json: bool) -> int:
    async def ask() -> QueueStats:
        async with visited(url) as queue:
            return await queue.stats()

    stats = anyio.run(ask)
    if as_json:
        write_json(asdict(stats))
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("backlog", f"{stats.backlog_records:,} records")
    table.add_row("", decimal(stats.backlog_bytes))
    table.add_row("oldest", _age(stats.oldest_age) if stats.backlog_records else "-")
    table.add_row("redeliveries", f"{stats.redeliveries:,}")
    table.add_row("dead letters", f"{stats.dead_letters:,}")
    Console(highlight=False).print(table)
    return 0


def peek_command(url: str, *, limit: int, full: bool, as_json: bool) -> int:
    async def ask() -> Sequence[Peeked]:
        async with visited(url) as queue:
            return await queue.peek(limit=limit)

    found = anyio.run(ask)
    if as_json:
        write_json({"records": [_document(record, full=full) for record in found]})
        return 0
    for record in found:
        for line in _lines(record, full=full):
            sys.stdout.write(f"{line}\n")
    if not found:
        sys.stdout.write("the queue is empty\n")
    return 0


def dead_command(url: str, *, limit: int, as_json: bool) -> int:
    async def ask() -> tuple[list[dict[str, Any]], int]:
        async with visited(url) as queue:
            letters = [
                {
                    "reason": printable(letter.reason),
                    "tag": printable(letter.tag),
                    "key": printable(letter.key),
                    "bytes": frames_nbytes(letter.frames),
                }
                for letter in await queue.dead_letters(limit=limit)
            ]
            return letters, (await queue.stats()).dead_letters

    letters, total = anyio.run(ask)
    if as_json:
        write_json({"dead_letters": total, "letters": letters})
        return 0
    console = Console(highlight=False)
    if letters:
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("tag", overflow="fold")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for letter in letters:
            table.add_row(escape(letter["tag"]), decimal(letter["bytes"]), escape(letter["reason"]))
        console.print(table)
    more = f", the first {len(letters):,} of them shown" if len(letters) < total else ""
    console.print(f"{total:,} dead letters{more}")
    return 0


def requeue_command(url: str, *, limit: int | None, as_json: bool) -> int:
    async def requeue() -> tuple[int, int]:
        async with visited(url) as queue:
            # Those there are now: what is rejected again meanwhile is not put back for ever.
            wanted = (await queue.stats()).dead_letters if limit is None else limit
            done = await queue.requeue(limit=wanted)
            return done, (await queue.stats()).dead_letters

    done, left = anyio.run(requeue)
    if as_json:
        write_json({"requeued": done, "dead_letters": left})
    else:
        sys.stdout.write(f"{done:,} dead letters put back as new records; {left:,} are left\n")
    return 0


def drain_command(url: str, *, lease: Lease, wait: float, confirmed: bool, as_json: bool) -> int:
    if not confirmed:
        _confirm(url)
    drained, left = anyio.run(_drain, url, lease, wait)
    if as_json:
        write_json({"drained": drained, "left": left})
        return 0
    kept = f"; {left:,} are left: another consumer holds them, or they were put meanwhile" if left else ""
    sys.stdout.write(f"{drained:,} records removed{kept}\n")
    return 0


def _confirm(url: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("draining throws records away; say --yes where nobody can be asked.")

    async def ask() -> tuple[str, QueueStats]:
        async with visited(url) as queue:
            return queue.url, await queue.stats()

    shown, stats = anyio.run(ask)
    size = f"{stats.backlog_records:,} records ({decimal(stats.backlog_bytes)})"
    typer.confirm(f"Throw away the {size} of {shown}?", abort=True, err=True)


async def _drain(url: str, lease: Lease, wait: float) -> tuple[int, int]:
    """How many were removed and how many are left. Takes no more than there were, or it might never end."""
    async with visited(url, lease) as queue:
        there, drained = (await queue.stats()).backlog_records, 0
        while drained < there and (batch := await _receive(queue, min(_ACKED_AT_ONCE, there - drained), wait)):
            await queue.ack(batch)
            drained += len(batch)
        return drained, (await queue.stats()).backlog_records


async def _receive(queue: Queue, most: int, wait: float) -> list[Delivery]:
    """What comes at once, after waiting for the first."""
    batch: list[Delivery] = []
    while len(batch) < most and (delivery := await queue.receive(timeout=0.0 if batch else wait)) is not None:
        batch.append(delivery)
    return batch


def visited(url: str, lease: Lease = "partition") -> Queue:
    """A handle of somebody who looks in: it must not bring about the queue that it was to find."""
    parts = split_url(url)
    if parts.scheme == "memory":
        raise QueueURLError(f"{url}: the queues of memory:// live within one process; nobody else can look at them")
    if parts.scheme == "file" and not (Path(unquote(parts.path)) / "queue.json").exists():
        raise QueueURLError(f"{url}: there is no queue in this directory")
    if parts.scheme == "zmq" and "serve" not in parse_qs(parts.query):
        url += f"{'&' if parts.query else '?'}serve=false"
    return open_queue(url, lease=lease)


def _document(record: Peeked, *, full: bool) -> dict[str, Any]:
    found = readable(record.frames, full=full)
    return {
        "partition": record.partition,
        "position": record.position,
        "delivered": record.delivered,
        "key": printable(record.key),
        "tag": printable(record.tag),
        "bytes": frames_nbytes(record.frames),
        "frames": len(record.frames),
        "kind": found.kind,
        "rollout": found.rollout,
        "content": found.content,
    }


def _lines(record: Peeked, *, full: bool) -> list[str]:
    shown = _document(record, full=full)
    name = shown["rollout"] or shown["tag"] or shown["key"]
    size = f"{decimal(shown['bytes'])} in {shown['frames']} frame{'s' if shown['frames'] > 1 else ''}"
    place = f"partition {shown['partition']}, position {shown['position']}"
    facts = [shown["kind"], name, size, place, f"key {shown['key']}", *(["delivered"] if record.delivered else [])]
    return ["  ".join(printable(fact) for fact in facts), *(f"    {line}" for line in lines(shown["content"])), ""]


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
