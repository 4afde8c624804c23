"""The limit of failed rollouts, `run.max_failed`: a bug must not use up all rollouts of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.errors import RolloutError
from rollout.records.endings import RolloutStatus

FIRST_JUDGEMENT = 16
"""How many rollouts must have ended before their share of failures counts."""


class TooManyFailures(RolloutError):
    """More rollouts of an environment failed than `run.max_failed` allows."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many rollouts of one environment may fail.

    Abandoned rollouts are not counted: nobody needed them, and they say nothing about the environment.

    Attributes:
        environment: the name of the environment.
        max_failed: as in `RunConfig`.
        earlier_counts: how many rollouts had ended with each status before this launch began; they are not counted.
    """

    environment: str
    max_failed: int | float | None
    earlier_counts: Mapping[str, int] = field(default_factory=dict)

    def check(self, status_counts: Mapping[str, int]) -> None:
        """Check how many rollouts have ended with each status.

        Raises:
            TooManyFailures: too many of them failed.
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
                self._stop(f"all {ended} that have ended; run.max_failed sets another limit")
        elif failed > (self.max_failed if isinstance(self.max_failed, int) else self.max_failed * ended):
            allowed = self.max_failed if isinstance(self.max_failed, int) else f"a share of {self.max_failed:g}"
            self._stop(f"{failed} of {ended} that have ended; run.max_failed allows {allowed}")

    def _stop(self, finding: str) -> None:
        raise TooManyFailures(
            f"too many rollouts of {self.environment} failed, so the run stops: {finding} (1.0: no limit). Correct "
            "the errors, and start again."
        )
