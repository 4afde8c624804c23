"""Finds the images that the records of a run refer to."""

from collections.abc import AsyncIterator
from urllib.parse import quote

from rollout.cli.queue_access import open_existing_queue
from rollout.config.queue_urls import fill_queue_url
from rollout.config.source import ConfigFileError, read_document
from rollout.errors import RolloutError
from rollout.records.kinds import RecordError, Step
from rollout.records.wire import decode_queue_record
from rollout.rundir.directory import RunDirectory
from transports import Frames, QueueError


class RecordsElsewhere(RolloutError):
    """The records of a run cannot be read from this machine, so no image may be removed."""


async def find_referenced_images(run: RunDirectory) -> set[str]:
    """Return the names of the images to which the remaining records of the run refer.

    Raises:
        RecordsElsewhere: some of the records cannot be read.
    """
    names: set[str] = set()
    for url in _find_queues(run):
        async for tag, frames in _read_records(url):
            try:
                record = decode_queue_record(frames)
            except RecordError as error:
                raise RecordsElsewhere(
                    f"{tag}: {error} The record's images are unknown, so all images are kept."
                ) from error
            if isinstance(record, Step):
                names |= {item["raw_image_id"] for item in record.images.values() if "raw_image_id" in item}
    return names


def _find_queues(run: RunDirectory) -> list[str]:
    """Return the URLs of the queue in the run's directory and of the queues in the run's saved configurations."""
    own = run.path / "trajectories"
    urls = {f"file://{quote(str(own))}"} if own.is_dir() else set()
    for file in sorted(run.path.glob("*.yaml")):
        try:
            saved = read_document(file, ()).data
            url = fill_queue_url(saved["queue"]["url"], run.path, saved["run"]["name"])
        except ConfigFileError as error:
            raise RecordsElsewhere(f"{error} The run's queue is not known, so all images are kept.") from error
        except (KeyError, TypeError, AttributeError):
            raise RecordsElsewhere(f"{file} does not name the run's queue, so all images are kept.") from None
        # The options of a file queue do not matter, because all of its records are read, acked or not.
        urls.add(url.partition("?")[0] if url.startswith("file:") else url)
    if not urls:
        raise RecordsElsewhere(
            f"{run.path} holds neither trajectories nor the configuration of a run, so it is not known which images "
            "are needed. After training, remove the whole directory of the run."
        )
    return sorted(urls)


async def _read_records(url: str) -> AsyncIterator[tuple[str, Frames]]:
    """Yield the tag and the frames of each record. Acked records come only from a file queue."""
    try:
        async with open_existing_queue(f"{url}?replay=true" if url.startswith("file:") else url) as queue:
            if queue.ends:
                while (delivery := await queue.receive(timeout=0.0)) is not None:
                    yield delivery.tag, delivery.frames
            elif backlog := (await queue.stats()).backlog_records:
                for record in await queue.peek(limit=backlog):
                    yield record.tag, record.frames
    except QueueError as error:
        raise RecordsElsewhere(
            f"the records of this run are in a queue that cannot be read here, so all images are kept: {error}"
        ) from error
