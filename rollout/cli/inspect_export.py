"""Writes trajectories to files for other tools: JSON lines, or Parquet if pyarrow is installed."""

from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from rollout.cli.inspect_prompts import ChangedText, prompt_documents
from rollout.cli.inspect_rows import COLUMNS, InspectError, row_of
from rollout.cli.queue_records import to_plain
from rollout.texts import dump_json
from rollout.trainer import Trajectory, samples

_ROWS_AT_ONCE = 256
_TURN_COLUMNS = ("unreceived_turns", "untrained_turns")
_JSON_COLUMNS = ("metrics", "rewards", "turn_rewards", "root_kinds", "task", "prompts")
_NO_TEXTS: Mapping[int, ChangedText] = MappingProxyType({})


def trajectory_document(trajectory: Trajectory, changed_texts: Mapping[int, ChangedText] = _NO_TEXTS) -> dict[str, Any]:
    """Return a whole trajectory as JSON-like data: its row, its message graph, and its training samples.

    `changed_texts` has the earlier text that the chat template changed, by `Step.turn`.
    """
    return {
        **asdict(row_of(trajectory)),
        "run": trajectory.run,
        "metrics": dict(trajectory.metrics),
        "rewards": {name: asdict(named) for name, named in trajectory.rewards.items()},
        "turn_rewards": {str(turn): reward for turn, reward in trajectory.turn_rewards.items()},
        "unreceived_turns": sorted(trajectory.unreceived_turns),
        "untrained_turns": sorted(trajectory.untrained_turns),
        "root_kinds": {str(root): kind.value for root, kind in trajectory.root_kinds.items()},
        "task": to_plain(trajectory.started.task) if trajectory.started else None,
        "assets": trajectory.started.assets if trajectory.started else None,
        "prompts": prompt_documents(trajectory, changed_texts),
        "nodes": [
            {
                "index": node.index,
                "parent": node.parent,
                "message": node.message,
                "token_ids": node.run.ids.tolist(),
                "sampled_from": node.run.sampled_from,
                "logprobs": node.run.logprobs.tolist(),
                "images": [asdict(slot) for slot in node.run.images],
            }
            for node in trajectory.nodes
        ],
        "tools": [
            {"root": step.first, "schemas": [dict(tool) for tool in step.tools]}
            for step in trajectory.steps
            if step.tools is not None
        ],
        "images": {mm_hash: dict(item) for mm_hash, item in trajectory.images.items()},
        "samples": _sample_documents(trajectory),
    }


async def write_trajectories(trajectories: AsyncIterable[Trajectory], path: Path) -> int:
    """Write trajectories to a `.jsonl` or `.parquet` file, and return their number; the file is never incomplete.

    Raises:
        InspectError: the file has another suffix, it cannot be written, or pyarrow is not installed.
    """
    try:
        writer_class = _WRITERS[path.suffix]
    except KeyError:
        raise InspectError(f"--export {path}: expected a name that ends with .jsonl or .parquet.") from None
    draft = path.with_name(f".{path.name}.incoming")
    try:
        writer = writer_class(draft)
        try:
            count = 0
            async for trajectory in trajectories:
                writer.add(trajectory_document(trajectory))
                count += 1
        finally:
            writer.close()
        draft.rename(path)
    except OSError as error:
        raise InspectError(f"--export {path}: cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return count


class _JsonLines:
    """A file with one line of JSON for each trajectory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(dump_json(row, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A file with one row for each trajectory; values without a fixed form (task, messages) are JSON text."""

    def __init__(self, path: Path) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            self._parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise InspectError(
                "Parquet needs pyarrow, which is not installed: pip install pyarrow, or export to .jsonl."
            ) from None
        arrow = self._arrow
        text, whole, numbers = arrow.string(), arrow.int64(), arrow.list_(arrow.int32())
        sample = {"leaf": whole, "token_ids": numbers, "mask": arrow.list_(arrow.bool_()), "version_index": numbers}
        sample |= {"logprobs": arrow.list_(arrow.float32()), "versions": arrow.list_(text)}
        sample |= {"turn_index": numbers, "token_rewards": arrow.list_(arrow.float32())}
        kinds = dict.fromkeys(("attempt", "turns", "images", "tokens", "sampled", "rendered"), whole)
        kinds |= {"reward": arrow.float64(), "seconds": arrow.float64(), "samples": arrow.list_(arrow.struct(sample))}
        kinds |= dict.fromkeys(_TURN_COLUMNS, numbers)
        names = ("run", *COLUMNS, "assets", *_TURN_COLUMNS, *_JSON_COLUMNS, "nodes", "samples")
        self._schema = arrow.schema([(name, kinds.get(name, text)) for name in names])
        self._file = self._parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; its column `images` is the number of different images; `nodes` contains their descriptors."""
        as_text = {name: dump_json(row[name]).decode() for name in _JSON_COLUMNS}
        as_text["nodes"] = dump_json({"nodes": row["nodes"], "images": row["images"]}).decode()
        self._rows.append({**row, **as_text, "images": len(row["images"])})
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


_WRITERS: dict[str, Callable[[Path], _JsonLines | _Parquet]] = {".jsonl": _JsonLines, ".parquet": _Parquet}


def _sample_documents(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [
        {
            "leaf": sample.leaf,
            "token_ids": sample.token_ids.tolist(),
            "mask": sample.mask.tolist(),
            "logprobs": sample.logprobs.tolist(),
            "version_index": sample.version_index.tolist(),
            "versions": list(sample.versions),
            "turn_index": sample.turn_index.tolist(),
            "token_rewards": sample.token_rewards.tolist(),
        }
        for sample in samples(trajectory)
    ]
