"""Tasks from somewhere else than the environment: rows of a JSONL or Parquet file, or of a Hugging Face data set.

    tasks: {source: data/questions.jsonl}
    tasks: {source: "hf://owner/name?split=train"}
    tasks: {source: queue}        # somebody else puts the orders; see `rollout.tasks.orders.encode_order`

A row becomes a task with the row as its `data`, which must be JSON-like, or bytes; its id is the row's `id`, or else
its number. `count` bounds how many.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from rollout.environments.base import QUEUE, Environment, TaskSettings
from rollout.errors import ConfigurationError
from rollout.records.task import Task


class TaskSourceError(ConfigurationError):
    """The source of the tasks cannot be read, or holds what is no task."""


def tasks_of(environment: Environment, settings: TaskSettings) -> Iterator[Task]:
    """All tasks of a run, in order, from wherever they come."""
    if settings.source is None:
        yield from environment.tasks(settings)
        return
    if settings.source == QUEUE:
        raise TaskSourceError(
            "tasks.source is queue: its tasks are played by `rollout launch` and `rollout worker` only."
        )
    seen: set[str] = set()
    for index, row in enumerate(islice(_rows(settings.source), settings.count)):
        own = row.get("id")
        name = f"{index:06d}" if own is None else str(own)
        if name in seen:
            raise TaskSourceError(f"tasks.source {settings.source}: row {index} has the id {name!r} of an earlier row.")
        seen.add(name)
        seed = blake2b(f"{settings.seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield Task(id=name, index=index, seed=int.from_bytes(seed, "big") >> 1, data=row)


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    if source.startswith("hf://"):
        return _hugging_face(source)
    readers = {".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(Path(source).suffix)
    if reader is None:
        raise TaskSourceError(f"tasks.source {source}: expected a .jsonl or .parquet file, hf://owner/name, or queue.")
    return reader(Path(source))


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(orjson.loads(line), f"{path}:{number}")
    except OSError as error:
        raise TaskSourceError(f"tasks.source {path}: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise TaskSourceError(f"{path}:{number}: this line is not JSON: {error}.") from None


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise TaskSourceError(
            f"tasks.source {path}: reading Parquet needs pyarrow: pip install 'rollout[parquet]'."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise TaskSourceError(f"tasks.source {path}: {error}.") from None


def _hugging_face(source: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise TaskSourceError(
            f"tasks.source {source} needs the datasets package: pip install 'rollout[datasets]'."
        ) from None
    parts = urlsplit(source)
    options = dict(parse_qsl(parts.query))
    name = parts.netloc + parts.path
    try:
        rows = datasets.load_dataset(name, options.get("config"), split=options.get("split", "train"))
    except Exception as error:  # noqa: BLE001 - the package raises whatever its many parts raise
        raise TaskSourceError(f"tasks.source {source}: {type(error).__name__}: {error}.") from None
    for index, row in enumerate(rows):
        yield _row(row, f"{source} row {index}")


def _row(found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise TaskSourceError(f"{where}: expected an object with the task's data, found a {type(found).__name__}.")
    return found
