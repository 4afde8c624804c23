"""The scripts that we render for Slurm run a launch, and workers that join it. A shell script stands in for Slurm."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.procfs import is_alive

SBATCH = """\
#!/usr/bin/env bash
# Starts a script once for each index of its array, and answers as `sbatch --parsable` does.
script=${@: -1}
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
for index in $(seq 0 "${last:-0}"); do
  bash "$script" > "$script.$index.out" 2>&1 < /dev/null &
  echo $! >> jobs
done
echo "17;cluster"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "sbatch").chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def wait_for(jobs: Path) -> None:
    deadline = time.monotonic() + 120
    while any(is_alive(int(pid)) for pid in jobs.read_text().split()):
        if time.monotonic() > deadline:
            for pid in jobs.read_text().split():
                subprocess.run(["kill", "-KILL", pid], check=False)
            raise AssertionError(f"the jobs did not end: {[path.read_text() for path in jobs.parent.glob('*.out')]}")
        time.sleep(0.1)


def test_the_scripts_for_slurm_play_a_run_and_end(
    repository: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    config = repository / "configs" / "color_codeword.yaml"
    settings = (f"run.directory={tmp_path}/runs", "tasks.count=5", "tasks.turns=2", "environment.image_size=32")
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "rollout", "launch", str(config), "--on=slurm", "--workers=2"]
    subprocess.run([*command, "--render", str(tmp_path / "run7"), *options], check=True, capture_output=True)
    claims = tmp_path / "runs" / "run7" / "claims" / "color_codeword"
    for _ in range(2):  # the second time, nothing is left to do
        subprocess.run([tmp_path / "run7" / "submit.sh", "--partition=cpu"], env=environment, check=True)
        wait_for(tmp_path / "run7" / "jobs")
        kinds = Counter(path.name.rpartition(".")[2] for path in claims.iterdir())
        assert kinds == {"1": 20, "done": 20}, [path.read_text() for path in (tmp_path / "run7").glob("*.out")]
        (tmp_path / "run7" / "jobs").unlink()
    logs = [path.read_text() for path in (tmp_path / "runs" / "run7" / "workers").glob("*.jsonl")]
    assert len(logs) == 4
    assert all("the run has ended" in log for log in logs)
    assert all(path.read_text() == "" for path in (tmp_path / "run7").glob("workers-*.out"))
