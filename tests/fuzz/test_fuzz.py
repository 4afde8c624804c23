"""Runs each fuzz script; `make verify` runs ten times as many cases as `.ci/run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in HERE.glob("fuzz_*.py"))
COUNT = {"full": 200_000, "ci": 20_000}.get(os.environ.get("ROLLOUT_TESTS", ""), 100)


SLOWER = {"fuzz_gateway": 10}
"""Scripts whose cases take longer, and how many times fewer cases they try."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_case_of_a_script_is_a_problem(script: str) -> None:
    count = COUNT // SLOWER.get(script, 1)
    command = [sys.executable, "-m", f"tests.fuzz.{script}", "--count", str(count)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cases {count}, seed 0" in done.stdout


@pytest.mark.parametrize(
    ("before", "attempt", "found"),
    [
        ("pass", "raise KeyError('unnamed')", "KeyError: 'unnamed'"),
        ("pass", "[number.bit_length() for number in range(10**6)]", "case 3: too many operations"),
        ("bytearray(190 << 20)", "bytearray(300 << 20)", "case 3: took "),
        ("pass", "__import__('os')._exit(9)", "case 3: the process ended with exit code 9"),
    ],
)
def test_a_script_reports_a_problem(before: str, attempt: str, found: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
from tests.fuzz.fuzzing import fuzz

def attempt(number):
    if number == 2:
        {before}
    if number == 3:
        {attempt}
    return "fine"

numbers = iter(range(10))
raise SystemExit(fuzz("", lambda chance: next(numbers), attempt, named_errors=(ValueError,)))
""")
    command = [sys.executable, str(script), "--count", "5"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert found in done.stdout
