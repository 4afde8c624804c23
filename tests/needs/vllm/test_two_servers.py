"""Two servers, one without a multimodal cache: each turn goes to the less loaded server, and one server may die.

The last test kills a server, so it comes last.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROLLOUTS = 200
BOTH = ("qwen3-vl", "no-cache")
SERVED = "request_success_total"


def launch(
    fleet: Mapping[str, Any], runs: Path, servers: Sequence[str] = BOTH, groups: int = 50
) -> subprocess.Popen[str]:
    """Start a run with these servers in a separate process; `runs` is its directory."""
    settings = {
        "engine.urls": json.dumps([fleet[name].url for name in servers]),
        "run.directory": str(runs),
        "tasks.count": str(groups),
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    config = Path(__file__).parent / "world" / "pictures.yaml"
    command = [sys.executable, "-m", "rollout", "run", str(config), "--json", *overrides]
    environment = {**os.environ, "MODEL": str(fleet["qwen3-vl"].model_dir)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finished(runs: Path) -> list[dict[str, Any]]:
    """Return the log entries of the finished rollouts."""
    lines = [line for log in runs.glob("*/log.jsonl") for line in log.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event["event"] == "rollout finished"]


def require_all_ended_well(process: subprocess.Popen[str], runs: Path) -> None:
    output, _ = process.communicate(timeout=240)
    report = json.loads(output)
    assert process.returncode == 0
    assert report["rollouts"] == report["trainer"]["trajectories"] == ROLLOUTS
    assert set(report["status"]) <= {"ok"}
    assert report["trainer"]["violations"] == 0
    rollouts = [event["rollout"] for event in finished(runs)]
    assert len(rollouts) == len(set(rollouts)) == ROLLOUTS


def test_rollouts_use_both_servers_without_errors_or_violations(fleet: Mapping[str, Any], media: Path) -> None:
    for name in BOTH:
        # The first images take a server many seconds, in which the other server would do all the work.
        launch(fleet, media / f"warm-{name}", [name], groups=8).communicate(timeout=120)
    before = {name: fleet[name].metric(SERVED) for name in BOTH}
    require_all_ended_well(launch(fleet, media / "both"), media / "both")
    shares = [fleet[name].metric(SERVED) - before[name] for name in before]
    assert sum(shares) == 3 * ROLLOUTS
    # The least loaded server gets the next request, so a slow server may get few.
    assert min(shares) > 0


def test_every_rollout_ends_once_when_a_server_is_killed_half_way(fleet: Mapping[str, Any], media: Path) -> None:
    runs = media / "killed"
    process = launch(fleet, runs)
    try:
        while len(finished(runs)) < ROLLOUTS // 2:
            assert process.poll() is None
            time.sleep(0.05)
        fleet["no-cache"].server.kill()
        assert len(finished(runs)) < ROLLOUTS
        require_all_ended_well(process, runs)
    finally:
        process.kill()
