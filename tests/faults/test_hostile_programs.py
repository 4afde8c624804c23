"""Programs that misbehave end as one failed rollout each, and their neighbours do not notice."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.programs.cgroups import describe_limits
from rollout.records.endings import RolloutStatus
from tests.faults.launched import LaunchHarness
from tests.faults.test_killed_programs import processes_with, read_trajectories

CONFIG = Path(__file__).parent / "hostile_programs.yaml"
KEY = re.compile(rb"sk-rollout-[0-9a-f]{4}")
EXPECTED = {
    "flood": "printed more than",
    "ignore_signals": "did not end within 20 s",
    "close_nothing": "ended with the exit code 1",
    "print_the_key": "failed with a-key-of-the-gateway",
}
EXPECTED_WITH_LIMITS = {
    "fork_bomb": "it was refused processes beyond 100",
    "allocate": "needed more than 268,435,456 bytes of memory",
}


def expected_errors() -> dict[str, str]:
    limited = "nothing" not in describe_limits()
    return {**EXPECTED, **(EXPECTED_WITH_LIMITS if limited else {})}


def files_below(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_hostile_program_is_one_failed_rollout_and_its_key_is_in_no_file(command: str, world: LaunchHarness) -> None:
    expected = expected_errors()
    kinds = [kind for hostile in expected for kind in (hostile, "good", "good")]
    source = world.directory / "tasks.jsonl"
    source.write_text("".join(json.dumps({"id": f"{n}-{kind}", "kind": kind}) + "\n" for n, kind in enumerate(kinds)))
    settings = {"tasks.source": source}
    launched = world.run(CONFIG, settings) if command == "run" else world.launch(CONFIG, settings, "--workers=2")
    report = launched.report(seconds=240)
    assert report["status"] == {"ok": 2 * len(expected), "failed": len(expected)}

    trajectories = asyncio.run(read_trajectories(Path(report["run_dir"])))
    errors = {
        trajectory.group.partition("-")[2]: trajectory.error["message"]
        for trajectory in trajectories
        if trajectory.status is RolloutStatus.FAILED and trajectory.error is not None
    }
    assert errors.keys() == expected.keys()
    for kind, text in expected.items():
        assert text in errors[kind]

    with_key = [path for path in files_below(world.directory) if KEY.search(path.read_bytes() + path.name.encode())]
    assert with_key == []
    kept = [path for path in files_below(world.directory) if "kept" in path.parts and path.name == "settings.bin"]
    assert len(kept) == 1
    assert max(path.stat().st_size for path in files_below(world.directory) if path.name == "output.txt") < 1 << 19
    assert processes_with(str(world.directory)) == {}
    assert list((world.directory / "tmp").glob("rollout-program-*")) == []
