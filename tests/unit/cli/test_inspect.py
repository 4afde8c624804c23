"""`rollout inspect`: a finished run as a table, as a conversation, as a file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import orjson
import pytest
from rich.console import Console

from rollout.cli.inspect import inspect as inspect_command
from rollout.cli.inspect_conversation import conversation_lines
from rollout.cli.inspect_export import trajectory_document
from rollout.cli.inspect_rows import COLUMNS, InspectError, Row, row_of
from rollout.cli.inspect_table import print_table
from rollout.cli.options import newest_run
from rollout.records.conversations import Echo, RootKind
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import NamedReward
from rollout.rundir.artifacts import attempt_directory
from rollout.rundir.directory import RunDirectory
from rollout.trainer import ReaderSettings, Trajectory, TrajectoryReader, open_archive
from rollout.trainer.errors import NoArchive, RolloutNotFound
from rollout.trainer.testing import Packet, checkpoint, put_all, read_all, scripted_rollout
from tests.unit.cli.in_process import run_cli, set_options
from transports import open_queue
from transports.codec import decode, encode

Inspect = Callable[..., str]


async def record_run(directory: Path) -> None:
    """Record two groups that a trainer has read and acked. The second has a damaged and an unfinished rollout."""
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
def inspect(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> Inspect:
    def call(rollout: str | None = None, **options: Any) -> str:
        settings: dict[str, Any] = {"sort": "rollout", "filters": (), "export": None, "full": False, "as_json": False}
        inspect_command(run_directory, rollout, **{**settings, **options})
        return capsys.readouterr().out

    return call


async def test_the_records_of_a_run_can_be_read_again_after_their_acks(run_directory: Path) -> None:
    for _ in range(2):
        async with open_archive(run_directory) as reader:
            found = [trajectory async for trajectory in reader]
        assert [trajectory.rollout for trajectory in found] == ["a.0", "a.1", "b.0", "b.1", "b.2"]


async def test_the_path_of_a_run_can_be_a_string(run_directory: Path) -> None:
    async with open_archive(str(run_directory)) as reader:
        assert len([trajectory async for trajectory in reader]) == 5
    with pytest.raises(NoArchive, match="does not exist"):
        open_archive(str(run_directory / "missing"))


async def test_the_groups_of_a_run_can_be_read_again(run_directory: Path) -> None:
    async with open_archive(run_directory) as reader:
        groups = [group async for group in reader.groups()]
    assert [(group.id, group.whole) for group in groups] == [("a", True), ("b", True)]


def test_the_output_in_a_pipe_has_every_column_and_is_not_wrapped_or_padded(inspect: Inspect) -> None:
    header, *lines, summary = [line.split("\t") for line in inspect().splitlines()]
    assert header == list(COLUMNS)
    shown = [0, 4, 6, 7, 8]
    assert [header[column] for column in shown] == ["rollout", "status", "reward", "turns", "images"]
    assert [[line[column] for column in shown] for line in lines] == [
        ["a.0", "ok", "1.0", "3", "3"],
        ["a.1", "ok", "2.0", "3", "3"],
        ["b.0", "failed", "-", "1", "0"],
        ["b.1", "ok", "1.0", "5", "0"],
        ["b.2", "unfinished", "-", "1", "0"],
    ]
    assert lines[2][-1].startswith("RecordError: the record cannot be decoded")
    text = "5 trajectories (1 failed, 3 ok, 1 unfinished); reward 1.333; 13 turns, 6 different images, 456 tokens"
    assert summary == [text]


def row(number: int, **changed: Any) -> Row:
    plain = Row(
        f"{number:06d}.0", "colors", f"{number:06d}", 1, "ok", "", 0.5, 30, 30, 12_345, 2_345, 0, "v-7", 1.234, ""
    )
    return replace(plain, **changed)


def table(rows: Sequence[Row], width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    print_table(rows, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


ERROR = "ValueError: a message that is much longer than any column of a table could be, so that it is cut"


def test_a_wide_terminal_has_room_for_every_column() -> None:
    header, line, *summary = table([row(0)], 80)
    names = {"rollout", "status", "reward", "turns", "images", "tokens", "sampled", "versions", "seconds"}
    assert set(header.split()) == names
    assert line.split() == ["000000.0", "ok", "0.500", "30", "30", "12,345", "2,345", "v-7", "1.234"]
    assert " ".join(summary) == "1 trajectories (1 ok); reward 0.500; 30 turns, 30 different images, 12,345 tokens"


def test_the_table_has_a_column_for_the_limit_if_a_rollout_has_one() -> None:
    header, line, other, *_ = table([row(0, limit="tokens"), row(1)], 100)
    at = header.index("limit")
    assert (line[at : at + 6], other[at : at + 6]) == ("tokens", " " * 6)


def test_a_narrow_terminal_shows_fewer_columns_and_names_the_others() -> None:
    header, good, bad, *rest = table([row(0), row(1, status="failed", reward=None, error=ERROR)], 80)
    assert header.split() == ["rollout", "status", "reward", "turns", "images", "tokens", "error"]
    assert good.split() == ["000000.0", "ok", "0.500", "30", "30", "12,345"]
    assert bad.split(maxsplit=6)[6] == "ValueError: a message that is …"
    assert len(bad) <= 80
    assert "Not shown: sampled, versions, seconds. A wider terminal, a pipe or --json shows" in rest


def test_a_name_that_is_longer_than_the_terminal_is_not_cut() -> None:
    name = "a-task-with-a-very-long-name/" + "x" * 90 + ".0"
    _, *lines = table([row(0, rollout=name, error=ERROR)], 80)
    assert name in "".join(line.split()[0] for line in lines if not line.startswith(("1 ", "No", "terminal")))
    assert " ok " in lines[0]


async def read_one(directory: Path, rollout: str) -> Trajectory:
    async with open_archive(directory) as reader:
        return next(trajectory for trajectory in [found async for found in reader] if trajectory.rollout == rollout)


def test_a_conversation_shows_the_limit_the_rewards_and_the_reward_of_a_turn(run_directory: Path) -> None:
    scored = replace(
        anyio.run(read_one, run_directory, "a.1"),
        limit=RolloutLimit.TURNS,
        rewards={"answer": NamedReward(2.0, 1.0), "format": NamedReward(0.0, 0.5)},
        turn_rewards={1: 0.25},
    )
    first, *lines = conversation_lines(scored, None, full=False)
    assert first.endswith("ok  limit turns  reward 2  answer 2 (weight 1)  format 0 (weight 0.5)")
    assert [line for line in lines if "reward" in line] == [
        "#3 assistant  [3 tokens, prompt bridged, sampled 1:3, mean logprob -0.250, version 7, stop, reward 0.25]"
    ]


def test_a_conversation_shows_the_kind_of_its_root_and_the_marks_of_its_turns(run_directory: Path) -> None:
    found = anyio.run(read_one, run_directory, "a.1")
    first, second, third = found.steps
    marked = replace(
        found,
        steps=(first, replace(second, echo=Echo.NORMALISED, constrained=True), replace(third, echo=Echo.EXACT)),
        root_kinds={0: RootKind.AUXILIARY},
        unreceived_turns=frozenset({2}),
        untrained_turns=frozenset({0, 1, 2}),
    )
    lines = [*conversation_lines(marked, None, full=False)]
    assert lines.index("auxiliary conversation") < next(at for at, line in enumerate(lines) if line.startswith("#0 "))
    assert [line.partition("stop, ")[2] for line in lines if "sampled" in line] == [
        "does not train]",
        "echo normalised, constrained, does not train]",
        "echo exact, not received]",
    ]


def test_an_image_in_two_messages_counts_once(run_directory: Path) -> None:
    trajectory = anyio.run(read_one, run_directory, "a.0")
    again = replace(trajectory.nodes[0], index=len(trajectory.nodes), parent=len(trajectory.nodes) - 1)
    assert row_of(replace(trajectory, nodes=(*trajectory.nodes, again))).images == 3


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
        ({"filters": ["colour=red"]}, "no column 'colour'; the columns are rollout, environment"),
        ({"filters": ["reward"]}, "expected a column, one of ="),
        ({"filters": ["turns>many"]}, "the column turns has numbers, but 'many' is not a number"),
        ({"sort": "-colour"}, "no column 'colour'"),
        ({"export": Path("x.csv")}, r"ends with \.jsonl or \.parquet"),
        ({"export": Path("/nowhere/x.jsonl")}, "cannot be written: No such file or directory"),
    ],
)
def test_a_wrong_option_is_refused(inspect: Inspect, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InspectError, match=complaint):
        inspect(**options)


def test_an_unknown_rollout_is_refused(inspect: Inspect) -> None:
    with pytest.raises(RolloutNotFound, match=r"has no rollout 'z\.9'"):
        inspect("z.9")


def test_one_trajectory_is_a_conversation_with_tokens_masks_and_images(inspect: Inspect) -> None:
    shown = inspect("a.1")
    assert shown.splitlines()[0] == "run/Scripted/a.1  attempt 2  ok  reward 2"
    assert "#0 user  [66 tokens, 3 before expansion]\n    <image 00000000000000000000000000000000>" in shown
    assert "    image at 0, 64 tokens: 000000000000….png\n" in shown
    assert f"    image at 0, 64 tokens: {0:064x}.png\n" in inspect("a.1", full=True)
    assert (
        "#3 assistant  [3 tokens, prompt bridged, sampled 1:3, mean logprob -0.250, version 7, stop]\n    answer 1"
        in shown
    )
    assert "check" not in shown


def test_a_failed_trajectory_is_shown_with_its_error_and_its_turns(inspect: Inspect) -> None:
    shown = inspect("b.0")
    assert "failed  RecordError: the record cannot be decoded" in shown.splitlines()[0]
    assert "answer 0" in shown
    assert "answer 1" not in shown


def test_an_error_of_several_lines_is_shown_in_full_below_the_conversation(run_directory: Path) -> None:
    error = {"type": "ProgramFailed", "message": "it ended with 3. Its last lines:\nno file\n  at 7"}
    failed = replace(anyio.run(read_one, run_directory, "a.1"), error=error)
    first, *lines = conversation_lines(failed, None, full=False)
    assert first.endswith("  ProgramFailed: it ended with 3. Its last lines: …")
    in_full = ["the error in full:", "    ProgramFailed: it ended with 3. Its last lines:", "    no file", "      at 7"]
    assert lines[-4:] == in_full
    assert "the error in full:" not in conversation_lines(failed, "Traceback:\n", full=False)


def test_one_trajectory_as_json_has_its_nodes_and_samples(inspect: Inspect) -> None:
    shown = json.loads(inspect("b.1", as_json=True))
    assert len(shown["nodes"]) == 10
    (sample,) = shown["samples"]
    assert sum(sample["mask"]) == 10
    assert len(sample["token_ids"]) == shown["tokens"]


def write_artifact(run_directory: Path, name: str, text: str, *, attempt: int = 2) -> Path:
    """Write a file of an attempt at the rollout a.1, whose recorded attempt is the second."""
    base = RunDirectory(run_directory).artifacts_path("Scripted")
    path = attempt_directory(base, "a.1", attempt) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_end_of_what_a_program_printed_is_below_its_conversation(run_directory: Path, inspect: Inspect) -> None:
    output = write_artifact(run_directory, "output.txt", "".join(f"line {number}\n" for number in range(30)))
    score_output = write_artifact(run_directory, "score-output.txt", "0.5")
    write_artifact(run_directory, "output.txt", "an earlier attempt\n", attempt=1)
    shown = inspect("a.1").partition("#5 assistant")[2].splitlines()
    at = shown.index(f"the program printed, its last 20 lines ({output}):")
    assert shown[at + 1 : at + 21] == [f"    line {number}" for number in range(10, 30)]
    assert shown[at + 21 :] == ["", f"the score command printed ({score_output}):", "    0.5"]
    assert "    line 0\n" in inspect("a.1", full=True)
    assert "printed" not in inspect("a.0")


def test_the_other_files_of_an_attempt_are_listed(run_directory: Path, inspect: Inspect, tmp_path: Path) -> None:
    for number in range(21):
        write_artifact(run_directory, f"kept/{number:02}.log", "x" * 2000)
    video = write_artifact(run_directory, "game.mp4", "")
    (video.parent / "kept" / "link").symlink_to(tmp_path)
    assert inspect("a.1").splitlines()[-23:] == [
        "",
        f"other files in {video.parent}:",
        "               0 bytes  game.mp4",
        *(f"           2,000 bytes  kept/{number:02}.log" for number in range(19)),
        "    … and 2 more files  (--full shows them)",
    ]
    assert inspect("a.1", full=True).endswith("           2,000 bytes  kept/20.log\n")


def test_the_artifacts_are_in_the_json(run_directory: Path, inspect: Inspect) -> None:
    paths = [write_artifact(run_directory, name, "four") for name in ("kept/answer.txt", "output.txt")]
    shown = json.loads(inspect("a.1", as_json=True))
    assert shown["artifacts"] == [{"path": str(path), "bytes": 4} for path in paths]
    assert json.loads(inspect("a.0", as_json=True))["artifacts"] == []


def test_output_that_cannot_be_read_does_not_hide_the_conversation(
    run_directory: Path, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_artifact(run_directory, "output.txt", "secret")

    open_file = Path.open

    def refuse_output(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == output:
            raise PermissionError(13, "Permission denied")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse_output)
    shown = inspect("a.1")
    assert "#5 assistant" in shown
    assert shown.endswith(f"\nwhat the program printed cannot be read: {output}: Permission denied\n")


def test_a_long_line_of_a_program_is_cut(run_directory: Path, inspect: Inspect) -> None:
    write_artifact(run_directory, "output.txt", "x" * 200_000)
    assert inspect("a.1").splitlines()[-1] == f"    {'x' * 500}…"
    assert inspect("a.1", full=True).splitlines()[-1] == f"    {'x' * 200_000}"


def test_control_characters_of_a_program_are_escaped(
    run_directory: Path, inspect: Inspect, one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    write_artifact(run_directory, "output.txt", "\x1b[2J50%\r100%\r\n")
    assert inspect("a.1").splitlines()[-1] == r"    50%\r100%"
    broken = one_line_environment(r"raise ValueError('\x1b[31m\x08red')")
    ran = run_cli("run", broken, *set_options(f"run.directory={tmp_path}/runs", "tasks.group_size=1"))
    tables = run_cli("inspect", f"{tmp_path}/runs"), run_cli("inspect", f"{tmp_path}/runs", "000000.0")
    for printed in (ran.stdout, ran.stderr, *(table.stdout for table in tables)):
        assert not {"\x1b", "\x08"} & set(printed)
    assert r"\x08red" in ran.stdout + ran.stderr
    assert all(r"\x08red" in table.stdout for table in tables)


def test_an_error_is_shown_with_the_frames_of_the_users_code(
    one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    broken = one_line_environment("raise ValueError('a bug of its own')")
    ran = run_cli("run", broken, "--json", *set_options(f"run.directory={tmp_path}/runs", "tasks.group_size=1"))
    run_directory = json.loads(ran.stdout)["run_dir"]
    shown = run_cli("inspect", run_directory, "000000.0").stdout
    frame = f'      File "{tmp_path}/{tmp_path.name}.py", line 3, in run\n'
    assert f"the error was raised here:\n    Traceback (most recent call last):\n{frame}" in shown
    assert shown.endswith("    ValueError: a bug of its own\n")
    as_json = json.loads(run_cli("inspect", run_directory, "000000.0", "--json").stdout)
    assert as_json["traceback"].endswith("ValueError: a bug of its own\n")


@pytest.fixture(scope="module")
def run_with_tools(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    runs = tmp_path_factory.mktemp("runs")
    options = set_options(
        "tasks.count=1", "tasks.group_size=1", "engine.sampling.temperature=0", f"run.directory={runs}"
    )
    ran = run_cli("run", str(repository / "configs" / "calculator.yaml"), "--json", *options)
    return str(json.loads(ran.stdout)["run_dir"])


def test_a_conversation_shows_tools_calls_and_results(run_with_tools: str) -> None:
    shown = run_cli("inspect", run_with_tools, "000000.0").stdout
    assert "\ntools calculate(operation, a, b)  (--full shows their schemas)\n\n#0 system" in shown
    assert re.search(r'\]\n    \(calls\) calculate\(operation="\w+", a=\d+, b=\d+\)\n', shown)
    assert "#3 tool result of calculate  [" in shown


def test_the_schemas_of_tools_are_shown_in_full_and_as_json(run_with_tools: str) -> None:
    shown = run_cli("inspect", run_with_tools, "000000.0", "--full").stdout
    assert '"description": "One operation on two whole numbers."' in shown
    ((tools),) = json.loads(run_cli("inspect", run_with_tools, "000000.0", "--json").stdout)["tools"]
    assert tools["root"] == 0
    assert tools["schemas"][0]["function"]["name"] == "calculate"


def test_an_export_has_a_line_for_each_trajectory_and_leaves_no_draft(inspect: Inspect, tmp_path: Path) -> None:
    inspect(export=tmp_path / "run.jsonl", filters=["status=ok"])
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [row["rollout"] for row in rows] == ["a.0", "a.1", "b.1"]
    assert list(tmp_path.glob(".*")) == []


def test_the_error_without_pyarrow_names_the_package(
    inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InspectError, match="pip install pyarrow"):
        inspect(export=tmp_path / "run.parquet")


@pytest.mark.parametrize(("directory", "found"), [("missing", "does not exist"), (".", "has no recorded trajectories")])
def test_a_directory_without_a_run_is_refused(tmp_path: Path, directory: str, found: str) -> None:
    with pytest.raises(NoArchive, match=found):
        open_archive(tmp_path / directory)


def test_the_command_prints_one_message_for_an_error_and_json_for_a_run(run_directory: Path) -> None:
    command = [sys.executable, "-m", "rollout", "inspect", str(run_directory)]
    refused = subprocess.run([*command, "--sort", "size"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("rollout: --sort: there is no column 'size'")
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["trajectories"] == 5


def test_a_directory_of_runs_stands_for_its_newest_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("old", "new")):
        (tmp_path / name / "workers").mkdir(parents=True)
        os.utime(tmp_path / name, (number, number))
    assert newest_run(tmp_path) == tmp_path / "new"
    assert capsys.readouterr().err == f"{tmp_path}/new, the newest of 2 runs in {tmp_path}\n"
    assert newest_run(tmp_path / "old") == tmp_path / "old"


async def exported(records: list[Packet]) -> Any:
    """Return the document of the trajectory that these records make."""
    async with open_queue("memory://inspected") as queue, TrajectoryReader(open_queue("memory://inspected")) as reader:
        await put_all(queue, records)
        (trajectory,) = await read_all(reader)
    return json.loads(orjson.dumps(trajectory_document(trajectory)))


async def test_rewards_by_name_and_by_turn_are_exported() -> None:
    *others, finished = await scripted_rollout(turns=2, turn_rewards={1: -0.5})
    value = decode(finished.frames) | {"rewards": {"answer": [0.5, 2.0]}}
    document = await exported([*others, finished._replace(frames=encode(value))])
    assert document["rewards"] == {"answer": {"value": 0.5, "weight": 2.0}}
    assert document["turn_rewards"] == {"1": -0.5}
    (sample,) = document["samples"]
    assert sample["turn_index"][-3:] == [-1, 1, 1]
    assert sample["token_rewards"][-3:] == [0.0, 0.0, -0.5]


async def test_turns_that_do_not_train_and_the_kinds_of_roots_are_exported() -> None:
    *others, finished = await scripted_rollout(turns=3)
    value = decode(finished.frames) | {"unreceived_turns": [2], "root_kinds": {"subagent": [0]}}
    document = await exported([*others, finished._replace(frames=encode(value))])
    assert (document["unreceived_turns"], document["untrained_turns"]) == ([2], [2])
    assert document["root_kinds"] == {"0": "subagent"}


async def test_task_data_that_is_not_json_is_exported() -> None:
    started, *others = await scripted_rollout()
    value = decode(started.frames)
    value["task"]["data"] = {"picture": b"\x00\xff", "scores": np.array([1, 2])}
    document = await exported([started._replace(frames=encode(value)), *others])
    assert document["task"]["data"] == {"picture": "0x00ff", "scores": [1, 2]}
