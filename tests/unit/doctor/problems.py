"""The problem that a test expects `rollout doctor` to find."""

from rollout.config.load import Config
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckResult, CheckStatus, exit_code


def only_problem(config: Config, *, live: bool = False) -> CheckResult:
    """Check a configuration that has one problem, and return this problem."""
    results = run_checks(config, live=live)
    assert exit_code(results) == 2
    (problem,) = [result for result in results if result.status is CheckStatus.BAD]
    return problem
