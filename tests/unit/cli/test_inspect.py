"""`rollout inspect`: a run that is over, as a table, as a conversation, as a file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout.cli.inspect import inspect as inspect_command
from rollout.cli.inspect_rows import InspectError
from rollout.trainer import ReaderSettings, TrajectoryReader, open_archive
from rollout.trainer.errors import NoArchive
from rollout.trainer.testing import checkpoint, put_all, read_all, scripted_rollout
from transports import open_queue

Inspect = Callable[..., str]


async def record_run(directory: Path) -> None:
    """Two groups, read and acked by a trainer; of the second one, a member is damaged and another never ended."""
    url = f"file://{directory}/trajectories?retain=true"
    async with open_queue(url) as queue:
        for sample in range(2):
            await put_all(
                queue, await scripted_rollout(f"a.{sample}", group_size=2, attempt=sample + 1, image_tokens=64)
            )
        damaged = await scripted_rollout("b.0", group_size=3, version="step-8")
        damaged[2] = damaged[2]._replace(frames=(b"\xc1",))
        await put_all(queue, damaged + await scripted_rollout("b.1", group_size=3, version="step-8", turns=5))
        await put_all(queue, (await scripted_rollout("b.2", group_size=3))[:2])
        async with TrajectoryReader(open_queue(url), ReaderSettings(require_images=False)) as reader:
            assert len(await read_all(reader)) == 4
            await checkpoint(reader)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    anyio.run(record_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def inspect(run_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    monkeypatch.setenv("COLUMNS", "160")

    def call(rollout: str | None = None, **options: Any) -> str:
        settings: dict[str, Any] = {"sort": "rollout", "filters": (), "export": None, "as_json": False, **options}
        inspect_command(run_directory, rollout, **settings)
        return capsys.readouterr().out

    return call


async def test_a_run_that_was_read_and_acked_is_read_again_by_the_same_reader(run_directory: Path) -> None:
    for _ in range(2):
        async with open_archive(run_directory) as reader:
            found = [trajectory async for trajectory in reader]
        assert [trajectory.rollout for trajectory in found] == ["a.0", "a.1", "b.0", "b.1", "b.2"]


async def test_groups_of_a_run_are_read_again_too(run_directory: Path) -> None:
    async with open_archive(run_directory) as reader:
        groups = [group async for group in reader.groups()]
    assert [(group.id, group.whole) for group in groups] == [("a", True), ("b", True)]


def test_the_table_has_a_line_for_each_and_a_summary(inspect: Inspect) -> None:
    header, *lines, summary = inspect().splitlines()
    assert header.split()[:5] == ["rollout", "status", "reward", "turns", "images"]
    cells = [line.split() for line in lines]
    assert [row[:5] for row in cells] == [
        ["a.0", "ok", "1.000", "3", "3"],
        ["a.1", "ok", "2.000", "3", "3"],
        ["b.0", "failed", "-", "1", "0"],
        ["b.1", "ok", "1.000", "5", "0"],
        ["b.2", "unfinished", "-", "1", "0"],
    ]
    assert summary.startswith("5 trajectories (1 failed, 3 ok, 1 unfinished); reward 1.333; 13 turns, 6 images, ")


@pytest.mark.parametrize(
    ("filters", "sort", "expected"),
    [
        (["status=ok"], "-reward", ["a.1", "a.0", "b.1"]),
        (["status!=ok"], "rollout", ["b.0", "b.2"]),
        (["reward<1.5"], "turns", ["a.0", "b.1"]),
        (["turns>=3", "images=0"], "rollout", ["b.1"]),
        (["error~decoded"], "rollout", ["b.0"]),
        (["versions=step-8"], "-turns", ["b.1", "b.0"]),
        ([], "-reward", ["a.1", "a.0", "b.1", "b.0", "b.2"]),
    ],
)
def test_rows_are_filtered_and_sorted(inspect: Inspect, filters: list[str], sort: str, expected: list[str]) -> None:
    shown = json.loads(inspect(filters=filters, sort=sort, as_json=True))
    assert [row["rollout"] for row in shown["rows"]] == expected
    assert shown["trajectories"] == len(expected)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"filters": ["colour=red"]}, "no column 'colour'; there are rollout, environment"),
        ({"filters": ["reward"]}, "expected a column, one of ="),
        ({"filters": ["turns>many"]}, "compared with a number"),
        ({"sort": "-colour"}, "no column 'colour'"),
        ({"rollout": "z.9"}, r"has no rollout 'z\.9'"),
        ({"export": Path("x.csv")}, r"ends with \.jsonl or \.parquet"),
        ({"export": Path("/nowhere/x.jsonl")}, "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(inspect: Inspect, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InspectError, match=complaint):
        inspect(**options)


def test_one_trajectory_is_a_conversation_with_tokens_masks_and_images(inspect: Inspect) -> None:
    shown = inspect("a.1")
    assert shown.splitlines()[0] == "run/Scripted/a.1  attempt 2  ok  reward 2"
    assert "#0 user  [66 tokens, 3 before expansion]\n    <image 00000000000000000000000000000000>" in shown
    assert f"    image {0:032x} at 0, 64 tokens: {0:064x}.png" in shown
    assert "#3 assistant  [3 tokens, sampled 1:3, mean logprob -0.250, version 7, stop]\n    answer 1" in shown
    assert "invariant" not in shown


def test_a_failed_one_says_why_and_shows_how_far_it_came(inspect: Inspect) -> None:
    shown = inspect("b.0")
    assert "failed  RecordError: the record cannot be decoded" in shown.splitlines()[0]
    assert "answer 0" in shown
    assert "answer 1" not in shown


def test_one_trajectory_as_json_has_its_nodes_and_samples(inspect: Inspect) -> None:
    shown = json.loads(inspect("b.1", as_json=True))
    assert len(shown["nodes"]) == 10
    (sample,) = shown["samples"]
    assert sum(sample["mask"]) == 10
    assert len(sample["token_ids"]) == shown["tokens"]


def test_an_export_has_a_line_for_each_and_appears_whole(inspect: Inspect, tmp_path: Path) -> None:
    inspect(export=tmp_path / "run.jsonl", filters=["status=ok"])
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [row["rollout"] for row in rows] == ["a.0", "a.1", "b.1"]
    assert list(tmp_path.glob(".*")) == []


def test_parquet_without_pyarrow_is_an_error_that_says_so(
    inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InspectError, match="pip install pyarrow"):
        inspect(export=tmp_path / "run.parquet")


@pytest.mark.parametrize(("directory", "found"), [("missing", "does not exist"), (".", "holds no trajectories")])
def test_a_directory_without_a_run_is_refused(tmp_path: Path, directory: str, found: str) -> None:
    with pytest.raises(NoArchive, match=found):
        open_archive(tmp_path / directory)


def test_the_command_line_prints_one_paragraph_for_a_fault_and_json_for_a_run(run_directory: Path) -> None:
    command = [sys.executable, "-m", "rollout", "inspect", str(run_directory)]
    refused = subprocess.run([*command, "--sort", "size"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("rollout: --sort: there is no column 'size'")
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["trajectories"] == 5
