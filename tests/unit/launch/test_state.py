"""The state of a launch: what its report says of the whole run."""

from pathlib import Path

from rollout.launch.local import LocalPlace
from rollout.launch.state import LaunchState
from rollout.rundir.claims import Outcome
from rollout.rundir.manifest import create_run


def test_the_report_has_what_earlier_launches_and_other_machines_did(repository: Path, tmp_path: Path) -> None:
    files = [repository / "configs" / "color_codeword.yaml", repository / "configs" / "calculator.yaml"]
    directory, launch_configs = create_run(files, (f"run.directory={tmp_path}",))
    state = LaunchState(directory, launch_configs, 2, LocalPlace(), is_resumed=False)
    error = {"type": "ValueError", "message": "bad"}
    for environment, status in zip(state.environments, ("ok", "failed"), strict=True):
        claim = environment.claims.claim_next_attempt("0.0")
        ended = Outcome(
            "0.0", "0", claim.attempt_number, status, request_retries=2, error=error if status == "failed" else None
        )
        environment.claims.record_outcome(ended)
    report = state.report()
    assert (report["rollouts"], report["request_retries"]) == (2, 4)
    assert report["environments"]["calculator"]["request_retries"] == 2
    assert [error.first_rollout for error in state.failures()] == ["calculator/0.0"]
