"""What the processes of a launch export when workers are killed: how rollouts ended, exactly as the summary says it."""

import os
import signal
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.launched import LaunchHarness

KILLS = 3


def test_the_metrics_equal_the_summary_when_workers_are_killed(world: LaunchHarness, repository: Path) -> None:
    settings: dict[str, object] = {
        "environment.image_size": 32,
        "tasks.count": 20,
        "tasks.turns": 2,
        "engine.embedded.latency_ms": 600,
        "worker.concurrency": 4,
        "worker.max_attempts": 12,
    }
    launched = world.launch(repository / "configs" / "color_codeword.yaml", settings, "--workers=2")
    for kills in range(KILLS):
        # Kill a worker after each tenth of the run.
        launched.wait_until(lambda: bool(launched.live_workers()) and _done(launched.runs) >= 8 * (kills + 1))  # noqa: B023
        os.kill(launched.live_workers()[0], signal.SIGKILL)
    report = launched.report(seconds=120)
    text = (Path(report["run_dir"]) / "metrics" / "launch.prom").read_text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    totals = {name: sum(s.value for s in samples if s.name == name) for name in {sample.name for sample in samples}}
    print(
        f"\n{report['deaths']} workers killed; rollouts {report['rollouts']} = {totals['rollout_rollouts_total']:.0f}, "
        f"turns {report['turns']} = {totals['rollout_finished_turns_total']:.0f}"
    )
    assert {s.labels["status"]: s.value for s in samples if s.name == "rollout_rollouts_total"} == report["status"]
    assert totals["rollout_finished_turns_total"] == report["turns"]
    assert totals["rollout_finished_tokens_total"] == report["tokens"]
    assert totals["rollout_finished_images_total"] == report["images"]
    assert totals["rollout_worker_deaths_total"] == report["deaths"] == KILLS
    assert sorted(path.name for path in (Path(report["run_dir"]) / "metrics").iterdir()) == [
        "color_codeword-0.prom",
        "color_codeword-1.prom",
        "launch.prom",
    ]


def _done(runs: Path) -> int:
    return sum(1 for _ in runs.glob("*/claims/*/*.done"))
