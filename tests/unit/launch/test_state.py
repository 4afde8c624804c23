"""The report of a launch covers the whole run."""

from pathlib import Path

from rollout.rundir.claims import Outcome
from tests.unit.launch.states import prepare_launch


def test_the_report_includes_earlier_launches_and_other_machines(repository: Path, tmp_path: Path) -> None:
    state = prepare_launch(repository, tmp_path, names=("color_codeword", "calculator"))
    bug = {"type": "ValueError", "message": "bad"}
    for environment, status, error in zip(state.environments, ("ok", "failed"), (None, bug), strict=True):
        attempt = environment.claims.claim_next_attempt("0.0").attempt_number
        environment.claims.record_outcome(Outcome("0.0", "0", attempt, status, request_retries=2, error=error))
    report = state.report()
    assert (report["rollouts"], report["request_retries"]) == (2, 4)
    assert report["environments"]["calculator"]["request_retries"] == 2
    assert [error.first_rollout for error in state.failures()] == ["calculator/0.0"]
