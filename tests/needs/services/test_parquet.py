"""A run is exported to Parquet, and read with pyarrow."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet

from rollout.cli.inspect_export import write_trajectories
from rollout.trainer import Trajectory, TrajectoryReader
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.testing import put_all, read_all, scripted_rollout
from transports import open_queue


async def test_an_exported_run_has_a_typed_row_for_each_trajectory(tmp_path: Path) -> None:
    async with open_queue("memory://parquet") as queue:
        for number in range(600):
            rollout = await scripted_rollout(f"{number:03d}.0", turns=1, image_tokens=64, turn_rewards={0: 0.5})
            await put_all(queue, rollout)
        async with TrajectoryReader(open_queue("memory://parquet"), ReaderSettings(require_images=False)) as reader:
            found = await read_all(reader)

    async def given() -> AsyncIterator[Trajectory]:
        for trajectory in found:
            yield trajectory

    assert await write_trajectories(given(), tmp_path / "run.parquet") == 600
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet")
    assert table.num_rows == 600
    row = table.slice(599, 1).to_pylist()[0]
    assert (row["rollout"], row["reward"], row["turns"], row["images"]) == ("599.0", 1.0, 1, 1)
    (sample,) = row["samples"]
    assert len(sample["token_ids"]) == len(sample["mask"]) == row["tokens"]
    assert sample["turn_index"][-3:] == [-1, 0, 0]
    assert sample["token_rewards"][-3:] == [0.0, 0.0, 0.5]
    assert (json.loads(row["turn_rewards"]), json.loads(row["rewards"])) == ({"0": 0.5}, {})
    assert (row["unreceived_turns"], row["untrained_turns"], json.loads(row["root_kinds"])) == ([], [], {})
    assert len(json.loads(row["nodes"])["nodes"]) == 2
