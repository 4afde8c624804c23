"""The errors of a run, as `rollout run` and `rollout launch` print them."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from rollout.cli.output import print_errors, with_errors
from rollout.rundir.claims import Outcome
from rollout.rundir.outcomes import DistinctError, ErrorTotals


def distinct_errors(*failures: Outcome) -> list[DistinctError]:
    totals = ErrorTotals()
    for outcome in failures:
        totals.add(outcome)
    return totals.distinct()


def printed(*failures: Outcome) -> str:
    console = Console(file=StringIO(), width=80)
    print_errors(console, distinct_errors(*failures), Path("runs/one"))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def failure(number: int, *, message: str = "bug", line: int | None = None) -> Outcome:
    frames = None if line is None else f'Traceback:\n  File "coin.py", line {line}, in run\nValueError: {message}\n'
    error = {"type": "ValueError", "message": message}
    return Outcome(f"{number:06d}.0", f"{number:06d}", 1, "failed", error=error, traceback=frames)


def test_the_same_message_from_another_line_is_a_different_error() -> None:
    text = printed(failure(0, line=3), failure(1, line=9), failure(2, line=3))
    assert text.count("ValueError: bug") == 2
    assert "000000.0 (and 1 other) failed:\n" in text
    assert "000001.0 failed:\n" in text


def test_only_the_first_ten_errors_are_shown_with_the_command_for_the_rest() -> None:
    text = printed(*[failure(number, message=f"bug {number}") for number in range(12)])
    assert text.splitlines()[9] == "000009.0 failed: ValueError: bug 9"
    assert text.splitlines()[10:] == ["… and 2 more different errors, all in: rollout logs runs/one --level warning"]


def test_the_json_report_has_the_errors() -> None:
    errors = distinct_errors(failure(1, line=3), failure(0, line=3))
    assert with_errors({"rollouts": 2}, errors) == {
        "rollouts": 2,
        "errors": [
            {
                "status": "failed",
                "type": "ValueError",
                "message": "bug",
                "rollouts": 2,
                "first_rollout": "000000.0",
                "traceback": 'Traceback:\n  File "coin.py", line 3, in run\nValueError: bug\n',
            }
        ],
    }
