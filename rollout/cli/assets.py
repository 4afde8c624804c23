"""`rollout assets`: counts the images of a run on disk, finds damaged ones, and removes those that nobody needs."""

from typing import Annotated

import typer

from rollout.cli.command_group import CommandGroup
from rollout.cli.options import Debug, Json, RunDir
from rollout.cli.output import print_text_or_json

app = typer.Typer(cls=CommandGroup, help="Count, verify and remove the images of a run on disk.", no_args_is_help=True)


@app.command()
def stats(run: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """Show how many images of each file type the run has, and how many bytes they take."""
    from rollout.rundir.assets import asset_stats

    found = asset_stats(run)
    kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(found.by_extension.items()))
    foreign = f"; {found.foreign} other files" if found.foreign else ""
    print_text_or_json(
        f"{found.files} images ({kinds or 'none'}), {found.n_bytes:,} bytes{foreign}",
        {"files": found.files, "bytes": found.n_bytes, **found.by_extension, "foreign": found.foreign},
        as_json=as_json,
    )


@app.command()
def verify(run: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """Read every image and compare it with the hash in its name; exit with 1 if one is damaged."""
    from rollout.rundir.assets import verify_assets

    result = verify_assets(run)
    problems = [{"file": problem.file_name, "reason": problem.reason} for problem in result.problems]
    lines = [f"{result.checked} images read, {len(problems)} damaged", *(str(problem) for problem in result.problems)]
    print_text_or_json("\n".join(lines), {"checked": result.checked, "problems": problems}, as_json=as_json)
    raise typer.Exit(1 if problems else 0)


@app.command()
def gc(
    run: RunDir,
    grace: Annotated[float, typer.Option(min=0, help="Keep images that are younger than this many seconds.")] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove all images, except those that an unacked record or a kept trajectory names.

    The command is refused while a process of the run is alive.
    """
    import anyio

    from rollout.cli.assets_references import find_referenced_images
    from rollout.paths import resolve_path
    from rollout.rundir.assets import collect_garbage
    from rollout.rundir.directory import RunDirectory

    referenced = anyio.run(find_referenced_images, RunDirectory(resolve_path(run)))
    result = collect_garbage(run, referenced, grace_seconds=grace, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    kept = f"kept {result.kept_referenced} in records and {result.kept_young} younger than {grace:g} s"
    print_text_or_json(
        f"{verb} {len(result.removed)} images, {result.bytes_removed:,} bytes; {kept}",
        {
            "removed": list(result.removed),
            "bytes": result.bytes_removed,
            "kept_referenced": result.kept_referenced,
            "kept_young": result.kept_young,
            "dry_run": dry_run,
        },
        as_json=as_json,
    )
