"""Tasks that do not come from the environment: rows of a JSONL or Parquet file, or of a Hugging Face data set.

    tasks: {source: data/questions.jsonl}
    tasks: {source: "hf://owner/name?split=train"}
    tasks: {source: queue}        # somebody else puts the orders; see `rollout.tasks.orders.encode_order`

Each row becomes a task. Its `data` is the row, whose values must be JSON-like, or bytes. Its id is the `id` of the row,
or else the row's number. `count` limits how many rows are used.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from rollout.environments.base import QUEUE_SOURCE, Environment, TaskSettings
from rollout.errors import ConfigurationError
from rollout.records.task import Task


class TaskSourceError(ConfigurationError):
    """The source of the tasks cannot be read, or contains something that is no task."""


def iter_tasks(environment: Environment, settings: TaskSettings) -> Iterator[Task]:
    """Yield all tasks of a run in order, from the environment or from the source."""
    if settings.source is None:
        yield from environment.tasks(settings)
        return
    if settings.source == QUEUE_SOURCE:
        raise TaskSourceError(
            "tasks.source is queue: its tasks are played by `rollout launch` and `rollout worker` only."
        )
    seen_ids: set[str] = set()
    for index, row in enumerate(islice(_read_rows(settings.source), settings.count)):
        row_id = row.get("id")
        task_id = f"{index:06d}" if row_id is None else str(row_id)
        if task_id in seen_ids:
            raise TaskSourceError(
                f"tasks.source {settings.source}: row {index} has the id {task_id!r} of an earlier row."
            )
        seen_ids.add(task_id)
        seed_bytes = blake2b(f"{settings.seed}/{task_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield Task(id=task_id, index=index, seed=int.from_bytes(seed_bytes, "big") >> 1, data=row)


def _read_rows(source: str) -> Iterator[Mapping[str, Any]]:
    if source.startswith("hf://"):
        return _read_hugging_face(source)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(Path(source).suffix)
    if reader is None:
        raise TaskSourceError(f"tasks.source {source}: expected a .jsonl or .parquet file, hf://owner/name, or queue.")
    return reader(Path(source))


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    yield _require_mapping(orjson.loads(line), f"{path}:{line_number}")
    except OSError as error:
        raise TaskSourceError(f"tasks.source {path}: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise TaskSourceError(f"{path}:{line_number}: this line is not JSON: {error}.") from None


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
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


def _read_hugging_face(source: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise TaskSourceError(
            f"tasks.source {source} needs the datasets package: pip install 'rollout[datasets]'."
        ) from None
    split_url = urlsplit(source)
    options = dict(parse_qsl(split_url.query))
    dataset_name = split_url.netloc + split_url.path
    try:
        rows = datasets.load_dataset(dataset_name, options.get("config"), split=options.get("split", "train"))
    except Exception as error:  # noqa: BLE001 - the package may raise any exception of its many parts
        raise TaskSourceError(f"tasks.source {source}: {type(error).__name__}: {error}.") from None
    for index, row in enumerate(rows):
        yield _require_mapping(row, f"{source} row {index}")


def _require_mapping(row: Any, location: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise TaskSourceError(f"{location}: expected an object with the task's data, found a {type(row).__name__}.")
    return row
