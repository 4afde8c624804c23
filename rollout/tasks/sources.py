"""Reads tasks from their source: the environment, a JSONL or Parquet file, or a Hugging Face data set.

    tasks: {source: data/questions.jsonl}
    tasks: {source: "hf://owner/name?split=train"}
    tasks: {source: queue}        # another program sends the orders; see `rollout.tasks.orders.encode_order`

Each row becomes a task. The row is the task's `data`; its values must be JSON-like or bytes. The task's id is the row's
`id`, or the row's number if it has no `id`. `count` limits the number of rows. Without `count`, all rows are used.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from rollout.environments.base import QUEUE_SOURCE, Environment, TaskSettings
from rollout.errors import ConfigurationError
from rollout.records.task import Task
from transports.redaction import hide_passwords

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_LINE_BYTES = 64 << 20
_MAX_ROWS_COUNTED = 1_000_000
"""The count of the rows of a JSONL file stops at this number, because counting reads every row."""


class TaskSourceError(ConfigurationError):
    """The source of the tasks cannot be read, or it contains a row that cannot be a task."""


@dataclass(frozen=True, slots=True)
class RowsUsed:
    """The number of rows of a source that a run uses.

    Attributes:
        source: a short name of the source.
        used: the number of rows that are used.
        total: the number of rows in the source; None if they cannot be counted.
        total_is_exact: whether the source has exactly `total` rows; otherwise it has more rows.
        asked: the value of `tasks.count`; 0 means all rows.
    """

    source: str
    used: int
    total: int | None
    total_is_exact: bool
    asked: int

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.used:,} rows of {self.source} (tasks.count)"
        more_than = "" if self.total_is_exact else "more than "
        text = f"{self.used:,} of {more_than}{self.total:,} rows of {self.source}"
        if self.used < self.total or not self.total_is_exact:
            return f"{text} (tasks.count)"
        return f"{text}; tasks.count is {self.asked:,}" if self.used < self.asked else text


def count_rows_used(settings: TaskSettings, used: int) -> RowsUsed | None:
    """Return the number of rows that a run uses, or None if its source has no rows.

    Args:
        settings: the section `tasks` of the configuration.
        used: the number of tasks in the run.

    Raises:
        TaskSourceError: the source cannot be read.
    """
    source = settings.source
    if source is None or source == QUEUE_SOURCE:
        return None
    name = source.removeprefix("hf://") if source.startswith("hf://") else Path(source).name
    if settings.count == 0 or used < settings.count:
        return RowsUsed(name, used, used, True, settings.count)
    if source.startswith("hf://"):
        return RowsUsed(name, used, len(_load_hugging_face(source)), True, settings.count)
    path = Path(source)
    if path.suffix == ".parquet":
        return RowsUsed(name, used, _count_parquet(path), True, settings.count)
    if not path.is_file():
        return RowsUsed(name, used, None, False, settings.count)
    with path.open("rb") as file:
        total = sum(1 for _ in islice((line for line in file if line.strip()), _MAX_ROWS_COUNTED + 1))
    return RowsUsed(name, used, max(used, min(total, _MAX_ROWS_COUNTED)), total <= _MAX_ROWS_COUNTED, settings.count)


def iter_tasks(environment: Environment, settings: TaskSettings) -> Iterator[Task]:
    """Yield all tasks of a run in order, from the environment or from the source."""
    if settings.source is None:
        yield from environment.tasks(settings)
        return
    if settings.source == QUEUE_SOURCE:
        raise TaskSourceError(
            "tasks.source is queue, which works only with `rollout launch` and `rollout worker`. Use one of these "
            "commands, or another source."
        )
    if settings.count == 0 and _may_be_endless(settings.source):
        raise TaskSourceError(
            f"tasks.source {_shown(settings.source)}: this is not a regular file, so it may have rows without end. "
            "Set tasks.count to the number of rows to use."
        )
    seen_ids: set[str] = set()
    for index, row in enumerate(islice(_read_rows(settings.source), settings.count or None)):
        task_id = _task_id(row, index, settings.source)
        if task_id in seen_ids:
            raise TaskSourceError(
                f"tasks.source {_shown(settings.source)}: row {index} has the same id as an earlier row, "
                f"{task_id[:200]!r}. Give each row a different id."
            )
        seen_ids.add(task_id)
        seed_bytes = blake2b(f"{settings.seed}/{task_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield Task(id=task_id, index=index, seed=int.from_bytes(seed_bytes, "big") >> 1, data=row)


def _task_id(row: Mapping[str, Any], index: int, source: str) -> str:
    """Return the id of a row's task; raise TaskSourceError if the row has an id of another type."""
    row_id = row.get("id")
    if row_id is None:
        return f"{index:06d}"
    if isinstance(row_id, bool) or not isinstance(row_id, str | int) or row_id == "":
        raise TaskSourceError(
            f"tasks.source {_shown(source)}: row {index} has the id {str(row_id)[:200]!r}; expected a string, or a "
            "whole number of at most 64 bits."
        )
    return str(row_id)


def _shown(source: str | Path) -> str:
    """Return the start of a source's name, without passwords, for errors."""
    return hide_passwords(str(source)[:1000])


def _read_rows(source: str) -> Iterator[Mapping[str, Any]]:
    if source.startswith("hf://"):
        return _read_hugging_face(source)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(Path(source).suffix)
    if reader is None:
        raise TaskSourceError(
            f"tasks.source {_shown(source)}: expected a .jsonl or .parquet file, hf://owner/name, or the word queue."
        )
    return reader(Path(source))


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            for line_number in count(1):
                line = file.readline(_MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > _MAX_LINE_BYTES:
                    raise TaskSourceError(
                        f"{path}:{line_number}: this line has more than {_MAX_LINE_BYTES:,} bytes. Put large data in "
                        "other files, and write only their paths in this file."
                    )
                if content := line.removeprefix(_BYTE_ORDER_MARK if line_number == 1 else b"").strip():
                    yield _require_mapping(orjson.loads(content), f"{path}:{line_number}")
    except orjson.JSONDecodeError as error:
        raise TaskSourceError(f"{path}:{line_number}: this line is not JSON in UTF-8: {error}.") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _may_be_endless(source: str) -> bool:
    """Whether the source exists but is something other than a regular file, for example a named pipe."""
    path = Path(source)
    try:
        return not source.startswith("hf://") and path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> TaskSourceError:
    """Return the error for a source that cannot be read."""
    return TaskSourceError(f"tasks.source {_shown(path)}: {getattr(error, 'strerror', None) or error}.")


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    with _open_parquet(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _count_parquet(path: Path) -> int:
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise TaskSourceError(
            f"tasks.source {path}: reading a Parquet file needs pyarrow. Run pip install 'rollout-rl[parquet]'."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, ValueError, ArrowException) as error:
        raise _unreadable(path, error) from None


def _read_hugging_face(source: str) -> Iterator[Mapping[str, Any]]:
    for index, row in enumerate(_load_hugging_face(source)):
        yield _require_mapping(row, f"{source} row {index}")


def _load_hugging_face(source: str) -> Any:
    """Return a split of a data set. Its rows stay on disk until they are read."""
    try:
        import datasets
    except ImportError:
        raise TaskSourceError(
            f"tasks.source {_shown(source)} needs the package datasets. Run pip install 'rollout-rl[datasets]'."
        ) from None
    try:
        parts = urlsplit(source)
    except ValueError:
        raise TaskSourceError(f"tasks.source {_shown(source)}: this is not a URL; expected hf://owner/name.") from None
    options = dict(parse_qsl(parts.query))
    dataset_name = parts.netloc + parts.path
    try:
        return datasets.load_dataset(dataset_name, options.get("config"), split=options.get("split", "train"))
    except Exception as error:  # noqa: BLE001 - the package may raise any exception
        reason = hide_passwords(str(error))
        raise TaskSourceError(f"tasks.source {_shown(source)}: {type(error).__name__}: {reason}.") from None


def _require_mapping(row: Any, location: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise TaskSourceError(
            f"{location}: expected an object with the data of one task; found the type {type(row).__name__}."
        )
    return row
