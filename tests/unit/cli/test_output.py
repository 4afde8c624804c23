"""The output on a terminal of 80 columns and in a pipe."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rollout.cli.output import describe_retries, list_means, print_table, print_wrapped, warn_of_close_failures
from tests.unit.cli.in_process import run_cli
from tests.unit.cli.terminal import WIDTH, run_in_terminal

ESCAPE = "\x1b"
LONG_PATH = "/data/" + "x" * 100
ROWS = (
    ("[dim]short[/dim]", "one"),
    ("a name", "many words " * 20),
    ("path", f"in {LONG_PATH} it is"),
    ("", "fix: nothing"),
)


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(file: io.StringIO, rows: Sequence[Sequence[str]] = ROWS) -> list[str]:
    console = Console(file=file, width=WIDTH, color_system=None)
    print_table(console, rows)
    return file.getvalue().splitlines()


def test_a_table_on_a_terminal_is_aligned_and_wrapped_between_words() -> None:
    lines = printed(FakeTerminal())
    assert lines[:2] == ["short   one", "a name  " + ("many words " * 6).rstrip() + " many"]
    assert lines[2].startswith("        words many")
    assert lines[-1] == "        fix: nothing"


def test_a_path_is_never_broken() -> None:
    lines = printed(FakeTerminal())
    assert f"        {LONG_PATH}" in lines
    assert [line for line in lines if len(line) > WIDTH] == [f"        {LONG_PATH}"]


def test_a_path_that_is_wider_than_the_last_column_begins_further_left() -> None:
    path = "/" + "x" * (WIDTH - 5)
    assert printed(FakeTerminal(), [("a name", f"in {path} it is")]) == ["a name  in", f"    {path}", "        it is"]
    assert printed(FakeTerminal(), [("a name", path)]) == ["a name", f"    {path}"]


def test_a_table_in_a_pipe_is_a_line_for_each_row() -> None:
    assert printed(io.StringIO()) == [
        "short  one",
        "a name  " + ("many words " * 20).rstrip(),
        f"path  in {LONG_PATH} it is",
        "  fix: nothing",
    ]


def test_output_in_a_pipe_has_no_padding_and_no_colour(
    color_codeword: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = run_cli("doctor", *color_codeword).stdout + run_cli("run", *color_codeword).stdout
    assert ESCAPE not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert re.search("^engine  embedded .{40,}$", text, re.MULTILINE)


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1", "TERM": "dumb"}], ids=["colours", "plain"])
def test_doctor_fits_a_terminal(color_codeword: Sequence[str], variables: dict[str, str]) -> None:
    shown = run_in_terminal("doctor", color_codeword[0], "--set", "run.directory=runs", variables=variables)
    assert shown.returncode == 0, shown.terminal
    assert ("\x1b[32mok" in shown.terminal) == (not variables)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.terminal).splitlines()
    last_columns = [match for line in lines if (match := re.search(r"(?<=  )\S+( \S+)*$", line))]
    too_long = [match[0] for match in last_columns if match.end() > WIDTH]
    assert [text for text in too_long if " " in text] == [], "only a path, which is never broken, may be too long"
    moved_left = [match for match in last_columns if " " not in match[0] and match.end() == WIDTH]
    subject_alone = [match for match in last_columns if re.fullmatch(r"\S+ +\S+", match.string)]
    aligned = [match for match in last_columns if match not in (*moved_left, *subject_alone)]
    assert len({match.start() for match in aligned}) == 1, lines


def test_the_summary_in_a_pipe_is_plain_if_stderr_is_a_terminal(color_codeword: Sequence[str]) -> None:
    shown = run_in_terminal("run", *color_codeword, terminal="stderr")
    assert shown.returncode == 0, shown.terminal
    assert ESCAPE in shown.terminal
    assert "all checks passed" not in shown.terminal
    assert ESCAPE not in shown.piped
    assert "all checks passed\n" in shown.piped
    assert "\nturns  30  (" in shown.piped


def test_the_summary_on_a_terminal_is_aligned_if_stderr_is_a_pipe(
    one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    config = one_line_environment("print('said'); return await __import__('asyncio').sleep(0.5)")
    arguments = ("--set", f"run.directory={tmp_path}")
    shown = run_in_terminal("run", config, *arguments, terminal="stdout", variables={"FORCE_COLOR": "1"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.terminal)
    assert plain.startswith("rollouts  4 of 4  (4 failed)\nreward    none\n"), plain
    printed = re.sub(r"^\d+/4 rollouts.*\n", "", shown.piped, flags=re.MULTILINE)  # without the progress of a slow run
    assert printed == "said\n" * 4, "no bar, although colours are forced"


def test_the_warning_for_failed_closes_has_the_command_that_shows_them() -> None:
    assert warn_of_close_failures({"close_failures": 0, "run_dir": "runs/one"}) is None
    warning = warn_of_close_failures({"close_failures": 3, "run_dir": "runs/one"})
    assert warning == "close of the environment failed in 3 rollouts: rollout logs runs/one --level warning"


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ({"retries": 1, "request_retries": 0, "retry_reason": None}, "1 attempt, 0 engine requests"),
        (
            {"retries": 1200, "request_retries": 1, "retry_reason": "no judge"},
            "1,200 attempts, 1 engine request; an environment gave the reason: no judge",
        ),
    ],
)
def test_retries_are_described_with_the_reason_of_an_environment(report: dict[str, Any], text: str) -> None:
    assert describe_retries(report) == text


def test_a_mean_that_is_a_whole_number_has_no_decimals() -> None:
    assert list_means({"exit_code": 0.0, "turns": 3.0, "share": 0.5}) == "  exit_code 0  turns 3  share 0.500"


def test_a_warning_is_wrapped_between_words_on_a_terminal_alone() -> None:
    path = f"/{'x' * 30}"
    terminal, pipe = FakeTerminal(), io.StringIO()
    for file in (terminal, pipe):
        print_wrapped(Console(file=file, width=20, color_system=None), f"it was {path} so do this", "yellow")
    assert terminal.getvalue() == f"it was\n{path}\nso do this\n"
    assert pipe.getvalue() == f"it was {path} so do this\n"
