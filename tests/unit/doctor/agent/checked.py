"""Plays an environment of the tests with `rollout doctor --agent`, and returns the rows by their subjects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import load_config
from rollout.doctor.agent.checking import check_agent
from rollout.doctor.agent.faults import Fault
from rollout.doctor.agent.playing import PlayLimits
from rollout.doctor.results import CheckResult, CheckStatus

LIMITS = PlayLimits(seconds=30.0, seconds_after_fault=30.0, requests_after_fault=12, answers_after_end=2)


@dataclass(frozen=True)
class Checked:
    """The report about an agent.

    Attributes:
        rows: the rows by their subjects, without `agent `.
        exit_code: the exit code.
    """

    rows: dict[str, CheckResult]
    exit_code: int

    def says(self, subject: str) -> str:
        """Return the message of a row that is no problem."""
        row = self.rows[subject]
        assert row.status is not CheckStatus.BAD, row
        return row.message

    def problem(self, subject: str) -> CheckResult:
        """Return a row that is a problem, and is named by the verdict."""
        row = self.rows[subject]
        assert row.status is CheckStatus.BAD, row
        assert self.exit_code == 1
        assert self.rows["agent"].message.startswith("no: ")
        assert f"{subject}: " in self.rows["agent"].message
        return row


def check(
    directory: Path,
    *habits: str,
    faults: Sequence[Fault] = (),
    environment: str = "SmallAgent",
    overrides: Sequence[str] = (),
    limits: PlayLimits = LIMITS,
) -> Checked:
    """Check an agent with these habits; with some faults only, because each fault is a play."""
    path = directory / "agent.yaml"
    path.write_text(
        f"environment: {{class: 'tests.unit.doctor.agent.small_environment:{environment}'}}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    if habits:
        overrides = [*overrides, f"environment.habits=[{', '.join(habits)}]"]
    results, exit_code = check_agent(load_config(path, overrides), lambda _: None, limits, faults)
    assert [entry.name for entry in directory.iterdir()] == ["agent.yaml"]  # no directory of a run
    rows = {result.subject.removeprefix("agent "): result for result in results}
    assert len(rows) == len(results)
    return Checked(rows, exit_code)
