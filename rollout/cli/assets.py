"""`rollout assets`: the images of a run on disk: how many, whether they are still themselves, and what may go."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import anyio
import yaml
from rich.console import Console
from rich.markup import escape

from rollout.cli.printing import write_json
from rollout.cli.queue import visited
from rollout.errors import RolloutError
from rollout.records.wire import RecordError, Step, decode_record
from rollout.rundir.assets import asset_stats, collect_garbage, verify_assets
from rollout.rundir.directory import RunDirectory
from transports import Frames, QueueError


class RecordsElsewhere(RolloutError):
    """What a run's records refer to cannot be known here, so nothing may be removed."""


def stats_command(run: Path, *, as_json: bool) -> int:
    found = asset_stats(run)
    report = {"files": found.files, "bytes": found.n_bytes, **found.by_extension, "foreign": found.foreign}
    kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(found.by_extension.items()))
    foreign = f"; {found.foreign} files that are no assets" if found.foreign else ""
    _tell(report, f"{found.files} images ({kinds or 'none'}), {found.n_bytes:,} bytes{foreign}", as_json=as_json)
    return 0


def verify_command(run: Path, *, as_json: bool) -> int:
    """1 if an image is no longer what its name says."""
    found = verify_assets(run)
    problems = [{"file": problem.file_name, "reason": problem.reason} for problem in found.problems]
    told = [f"{found.checked} images read, {len(problems)} damaged", *(str(problem) for problem in found.problems)]
    _tell({"checked": found.checked, "problems": problems}, "\n".join(told), as_json=as_json)
    return 1 if problems else 0


def gc_command(run: Path, *, grace: float, dry_run: bool, as_json: bool) -> int:
    referenced = anyio.run(_referenced, RunDirectory(run.resolve()))
    found = collect_garbage(run, referenced, grace_seconds=grace, dry_run=dry_run)
    report = {
        "removed": list(found.removed),
        "bytes": found.bytes_removed,
        "kept_referenced": found.kept_referenced,
        "kept_young": found.kept_young,
        "dry_run": dry_run,
    }
    verb = "would remove" if dry_run else "removed"
    kept = f"kept {found.kept_referenced} that records refer to and {found.kept_young} younger than {grace:g} s"
    _tell(report, f"{verb} {len(found.removed)} images, {found.bytes_removed:,} bytes; {kept}", as_json=as_json)
    return 0


async def _referenced(run: RunDirectory) -> set[str]:
    """The images that any record of the run names which is still there."""
    names: set[str] = set()
    for url in _queues(run):
        async for tag, frames in _records(url):
            try:
                record = decode_record(frames)
            except RecordError as error:
                raise RecordsElsewhere(f"{tag}: {error} What it refers to is unknown, so all is kept.") from error
            if isinstance(record, Step):
                names |= {item["raw_image_id"] for item in record.images.values() if "raw_image_id" in item}
    return names


def _queues(run: RunDirectory) -> list[str]:
    """Where the run's records are: in its directory, and where the configurations say that were kept there."""
    own = run.path / "trajectories"
    found = {f"file://{quote(str(own))}"} if own.is_dir() else set()
    for file in sorted(run.path.glob("*.yaml")):
        try:
            kept = yaml.safe_load(file.read_text("utf-8"))
            url = run.queue_url(kept["queue"]["url"], kept["run"]["name"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise RecordsElsewhere(f"{file} does not say where its records are ({error!r}), so all is kept.") from error
        # What a file queue keeps is read, not only what nobody has acked, whatever its URL says besides.
        found.add(url.partition("?")[0] if url.startswith("file:") else url)
    if not found:
        raise RecordsElsewhere(
            f"{run.path} holds neither trajectories nor the configuration of a run, so that what is still referred to "
            "cannot be known. Remove the run's directory as a whole once it is trained."
        )
    return sorted(found)


async def _records(url: str) -> AsyncIterator[tuple[str, Frames]]:
    """Of a directory everything that it keeps, acked or not; of another queue what nobody has acked."""
    try:
        async with visited(f"{url}?replay=true" if url.startswith("file:") else url) as queue:
            if queue.ends:
                while (delivery := await queue.receive(timeout=0.0)) is not None:
                    yield delivery.tag, delivery.frames
            elif backlog := (await queue.stats()).backlog_records:
                for record in await queue.peek(limit=backlog):
                    yield record.tag, record.frames
    except QueueError as error:
        raise RecordsElsewhere(
            f"the records of this run are in a queue that cannot be read from here, so all is kept: {error}"
        ) from error


def _tell(report: object, text: str, *, as_json: bool) -> None:
    if as_json:
        write_json(report)
    else:
        Console(highlight=False).print(escape(text))
