"""`rollout assets`: the images of a run on disk: how many, whether they are still themselves, and what may go."""

import sys
from pathlib import Path

import anyio
import orjson
from rich.console import Console
from rich.markup import escape

from rollout.errors import RolloutError
from rollout.images.maintenance import asset_stats, collect_garbage, verify_assets
from rollout.rundir import RunDirectory
from rollout.steps import RecordError, Step, decode_record
from transports import open_queue


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
    """The images that any record which is still there names, acked or not."""
    if not (run.path / "trajectories").is_dir():
        raise RecordsElsewhere(
            f"{run.path} holds no trajectories: its records are in another queue, and what they refer to cannot be "
            "known from here. Remove the run's directory as a whole once they are trained."
        )
    names: set[str] = set()
    async with open_queue(run.url("file://{run_dir}/trajectories?replay=true", "")) as queue:
        while (delivery := await queue.receive(timeout=0.0)) is not None:
            try:
                record = decode_record(delivery.frames)
            except RecordError as error:
                raise RecordsElsewhere(
                    f"{delivery.tag}: {error} What it refers to is unknown, so all is kept."
                ) from error
            if isinstance(record, Step):
                names |= {item["raw_image_id"] for item in record.images.values() if "raw_image_id" in item}
    return names


def _tell(report: object, text: str, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(orjson.dumps(report).decode() + "\n")
    else:
        Console(highlight=False).print(escape(text))
