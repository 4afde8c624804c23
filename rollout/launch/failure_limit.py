"""The limit of failed rollouts, `run.max_failed`. It stops a run before a bug makes all rollouts fail."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.errors import RolloutError
from rollout.records.endings import RolloutStatus

FIRST_JUDGEMENT = 16
"""The number of rollouts that must have ended before the share of failed rollouts is checked."""


class TooManyFailures(RolloutError):
    """More rollouts of an environment failed than `run.max_failed` allows."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """Checks that not too many rollouts of one environment fail.

    Abandoned rollouts are not counted, because nobody needed them, and they say nothing about the environment.

    Attributes:
        environment: the name of the environment.
        max_failed: the value of `run.max_failed`; see `RunConfig`.
        earlier_counts: the rollouts that ended before this launch, by status; they are not counted.
    """

    environment: str
    max_failed: int | float | None
    earlier_counts: Mapping[str, int] = field(default_factory=dict)

    def check(self, status_counts: Mapping[str, int]) -> None:
        """Check the number of failed rollouts; `status_counts` has the number of all rollouts that ended, by status.

        Raises:
            TooManyFailures: too many rollouts failed.
        """
        counts = {
            status: status_counts.get(status, 0) - self.earlier_counts.get(status, 0)
            for status in (RolloutStatus.OK, RolloutStatus.UNSCORED, RolloutStatus.FAILED)
        }
        failed, ended = counts[RolloutStatus.FAILED], sum(counts.values())
        if not failed or (ended < FIRST_JUDGEMENT and not isinstance(self.max_failed, int)):
            return
        if self.max_failed is None:
            if failed == ended:
                self._stop(f"all {ended} rollouts that have ended. run.max_failed sets another limit")
        elif failed > (self.max_failed if isinstance(self.max_failed, int) else self.max_failed * ended):
            allowed = self.max_failed if isinstance(self.max_failed, int) else f"a share of {self.max_failed:g}"
            self._stop(f"{failed} of {ended} rollouts that have ended. run.max_failed allows {allowed}")

    def _stop(self, finding: str) -> None:
        raise TooManyFailures(
            f"the run stops, because too many rollouts of {self.environment} failed: {finding} (1.0: no limit). "
            "Correct the errors, and start again."
        )
