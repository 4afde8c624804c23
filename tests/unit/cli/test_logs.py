"""`rollout logs`: the logs of a launch and its workers as one stream of lines."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rollout.cli import logs_reading
from rollout.cli.logs_format import LineFormat
from rollout.cli.logs_reading import LogLine, RunLogs
from rollout.rundir.artifacts import attempt_directory
from rollout.rundir.directory import RunDirectory
from tests.unit.cli.in_process import run_cli

FIRST = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC).timestamp()


def logged(second: float, event: str, level: str = "info", **fields: Any) -> str:
    timestamp = datetime.fromtimestamp(FIRST + second, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "run": "one", "level": level, "timestamp": timestamp, **fields}) + "\n"


def append(path: Path, text: str, *, second: float = 100.0) -> None:
    with path.open("a") as file:
        file.write(text)
    os.utime(path, (FIRST + second, FIRST + second))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the directory of a launch that has a log and no workers yet."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    (tmp_path / "workers").mkdir()
    (tmp_path / "launch.json").touch()
    append(tmp_path / "log.jsonl", logged(0, "worker started", worker="coin-0", pid=7))
    yield tmp_path
    monkeypatch.undo()
    time.tzset()


def shown(run: Path, *options: str) -> list[str]:
    result = run_cli("logs", str(run), *options)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_lines_of_launch_and_workers_are_merged_by_time(run: Path) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "first") + logged(3, "third", worker="coin-0", status="ok"))
    append(run / "workers" / "coin-1.jsonl", logged(2, "second", words="two words"))
    append(run / "log.jsonl", logged(4, "launch ended", status={"ok": 1}))
    assert shown(run) == [
        "2026-01-31 12:00:00  info  launch  worker started  worker=coin-0 pid=7",
        "2026-01-31 12:00:01  info  coin-0  first",
        '2026-01-31 12:00:02  info  coin-1  second  words="two words"',
        "2026-01-31 12:00:03  info  coin-0  third  status=ok",
        '2026-01-31 12:00:04  info  launch  launch ended  status={"ok":1}',
    ]


def test_a_traceback_is_shown_below_its_line(run: Path) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "failed", "warning", exception="Traceback:\n  File\nE: no"))
    assert shown(run)[1:] == [
        "2026-01-31 12:00:01  warning  coin-0  failed",
        "    Traceback:",
        "      File",
        "    E: no",
    ]


def test_printed_text_is_shown_unchanged_at_the_time_of_its_file(run: Path) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "before") + logged(3, "after"))
    append(run / "workers" / "coin-0.out", 'hello\n{"of": "its own"}\nFatal Python error', second=2)
    assert shown(run)[1:] == [
        "2026-01-31 12:00:01  info  coin-0  before",
        "-  printed  coin-0  hello",
        '-  printed  coin-0  {"of": "its own"}',
        "-  printed  coin-0  Fatal Python error",
        "2026-01-31 12:00:03  info  coin-0  after",
    ]


def test_level_hides_lower_levels_and_printed_text(run: Path) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "warned", "warning") + logged(2, "wrong", "error"))
    append(run / "workers" / "coin-0.out", "hello\n")
    assert [line.split()[-1] for line in shown(run, "--level", "warning")] == ["warned", "wrong"]


@pytest.mark.parametrize("name", ["000000.0", "coin/000000.0", "one/coin/000000.0"])
def test_the_lines_of_a_rollout_are_found_by_each_form_of_its_name(run: Path, name: str) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "mine", rollout="000000.0") + logged(2, "no", rollout="1.0"))
    assert [line.split()[4] for line in shown(run, "--rollout", name)] == ["mine"]


def test_rollouts_with_the_same_name_in_two_environments_are_different(run: Path) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "coin", rollout="000000.0"))
    append(run / "workers" / "dice-0.jsonl", logged(2, "dice", rollout="000000.0"))
    assert [line.split()[4] for line in shown(run, "--rollout", "dice/000000.0")] == ["dice"]


def append_output(
    run: Path, text: str, *, second: float = 2, attempt: int = 1, environment: str = "coin", name: str = "output.txt"
) -> None:
    directory = attempt_directory(RunDirectory(run).artifacts_path(environment), "000000.0", attempt)
    directory.mkdir(parents=True, exist_ok=True)
    append(directory / name, text, second=second)


@pytest.mark.parametrize("name", ["000000.0", "coin/000000.0", "one/coin/000000.0"])
def test_what_the_program_of_a_rollout_printed_is_among_its_lines(run: Path, name: str) -> None:
    append(run / "workers" / "coin-0.jsonl", logged(1, "began", rollout="000000.0"))
    append_output(run, "first try\n")
    append_output(run, "hello\n" + logged(9, "launch ended"), second=3, attempt=2)
    append_output(run, "0.5", second=4, attempt=2, name="score-output.txt")
    append(run / "workers" / "coin-0.jsonl", logged(5, "ended", rollout="000000.0"))
    assert [line.split("  ", 3)[2:] for line in shown(run, "--rollout", name)] == [
        ["coin-0", "began  rollout=000000.0"],
        ["1/output.txt", "first try"],
        ["2/output.txt", "hello"],
        ["2/output.txt", logged(9, "launch ended").strip()],
        ["2/score-output.txt", "0.5"],
        ["coin-0", "ended  rollout=000000.0"],
    ]


def test_what_other_programs_printed_is_not_shown(run: Path) -> None:
    append_output(run, "coin\n")
    append_output(run, "dice\n", environment="dice")
    append_output(run, "video", name="game.mp4")
    assert shown(run, "--rollout", "dice/000000.0") == ["-  printed  1/output.txt  dice"]
    assert [line.split("  ")[3] for line in shown(run)] == ["worker started"]


def test_control_characters_of_a_program_do_not_reach_the_terminal(run: Path) -> None:
    append_output(run, "\x1b[2J\x1b]0;title\x07red\x07\r\n")
    error = "ProgramFailed: it printed \x1b[31m\x08no"
    append(run / "workers" / "coin-0.jsonl", logged(3, "failed", rollout="000000.0", exception=error))
    assert shown(run, "--rollout", "000000.0") == [
        r"-  printed  1/output.txt  red\x07",
        "2026-01-31 12:00:03  info  coin-0  failed  rollout=000000.0",
        r"    ProgramFailed: it printed \x08no",
    ]


def test_the_growing_output_of_a_program_is_followed(run: Path) -> None:
    append_output(run, "one\ntw")
    run_logs = RunLogs(run, level="debug", rollout="000000.0")
    assert events(run_logs) == ["one"]
    append_output(run, "o\n")
    append_output(run, "again\n", attempt=2)
    assert events(run_logs) == ["two", "again"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("{run}", "--rollout", "z.9"), "names the rollout 'z.9'; `rollout inspect"),
        (("{run}", "--level", "loud"), "'loud' is not one of 'debug', 'info', 'warning'"),
        (("{run}/missing",), "does not exist. Give the directory of a run."),
        (("{run}/workers",), "holds no logs"),
    ],
)
def test_a_wrong_option_or_directory_is_refused(run: Path, arguments: tuple[str, ...], complaint: str) -> None:
    result = run_cli("logs", *(argument.format(run=run) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr


def test_colours_and_alignment_are_for_terminals() -> None:
    line = LogLine(FIRST, "coin-0", "", {"event": "warned", "level": "warning"})
    assert "\x1b[33mwarning" in LineFormat(is_terminal=True, has_colors=True).text_of(line, 8)
    aligned = LineFormat(is_terminal=True, has_colors=False).text_of(line, 8)
    assert aligned.endswith("  warning   coin-0    warned\n")


def events(run_logs: RunLogs, *, is_last: bool = False) -> list[str]:
    return [line.text if line.fields is None else line.fields["event"] for line in run_logs.read_new(is_last=is_last)]


def test_new_lines_and_new_files_are_read(run: Path) -> None:
    run_logs = RunLogs(run, level="debug")
    assert events(run_logs) == ["worker started"]
    assert events(run_logs) == []
    append(run / "log.jsonl", logged(5, "grown"))
    append(run / "workers" / "coin-1.jsonl", logged(4, "joined"))
    assert events(run_logs) == ["joined", "grown"]


def test_an_incomplete_line_is_shown_only_at_the_end(run: Path) -> None:
    run_logs = RunLogs(run, level="debug")
    whole = logged(5, "late")
    append(run / "log.jsonl", whole[:30])
    assert events(run_logs) == ["worker started"]
    append(run / "log.jsonl", whole[30:] + '{"event": "torn')
    assert events(run_logs) == ["late"]
    assert events(run_logs, is_last=True) == ['{"event": "torn']


def test_large_logs_are_read_a_piece_at_a_time(run: Path) -> None:
    line = logged(1, "x" * 1000)
    for name in ("coin-0", "coin-1"):
        append(run / "workers" / f"{name}.jsonl", line * 2000)
    run_logs = RunLogs(run, level="debug")
    lines = run_logs.read_new(is_last=True)
    next(lines)
    assert all(file.offset < 100_000 for file in run_logs._files.values())
    assert sum(1 for _ in lines) == 4000


def test_a_line_that_is_too_long_is_cut(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_reading, "_MAX_LINE_BYTES", 200_000)
    append(run / "workers" / "coin-0.out", "x" * 1_000_000)
    assert max(len(event) for event in events(RunLogs(run, level="debug"), is_last=True)) < 500_000


def call_soon(call: Callable[[], None]) -> None:
    timer = threading.Timer(0.1, call)
    timer.daemon = True
    timer.start()


def test_follow_continues_until_the_launch_ends(run: Path) -> None:
    call_soon(lambda: append(run / "log.jsonl", logged(5, "launch ended")))
    assert [line.split(maxsplit=4)[4] for line in shown(run, "--follow")][1:] == ["launch ended"]


def test_ctrl_c_ends_following(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    result = run_cli("logs", str(run), "--follow")
    assert (result.returncode, result.stderr) == (130, "")
    assert "worker started" in result.stdout


def test_a_launch_that_continues_after_an_end_has_not_ended(run: Path) -> None:
    run_logs = RunLogs(run, level="debug")
    append(run / "log.jsonl", logged(5, "launch ended") + logged(6, "worker started"))
    events(run_logs)
    assert not run_logs.has_ended()


def test_a_run_whose_launch_was_killed_has_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_reading, "_QUIET_SECONDS", 0.0)
    run_logs = RunLogs(run, level="debug")
    events(run_logs)
    with (run / "launch.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        assert not run_logs.has_ended()
    assert run_logs.has_ended()


def test_a_real_run_is_shown(color_codeword: list[str], tmp_path: Path) -> None:
    report = json.loads(run_cli("run", *color_codeword, "--json", "--set", "tasks.count=1").stdout)
    lines = shown(Path(report["run_dir"]), "--rollout", "color_codeword/000000.1")
    assert [line.split("  ")[1:4] for line in lines] == [["info", "run", "rollout finished"]]
