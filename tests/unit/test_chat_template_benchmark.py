"""The benchmark of chat templates runs. Its bounds are not checked here, because other load disturbs them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_measures_a_first_prompt_and_a_bridged_turn() -> None:
    command = [sys.executable, "-m", "benchmarks.chat_templates", "--turns", "16", "--rounds", "1", "--json"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.stdout, process.stderr
    assert [figure["turn"] for figure in json.loads(process.stdout)] == [1, 16]
