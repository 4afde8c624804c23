"""Computes what the trainer logs about a step, under the names that TRL uses."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch

from rollout.records.versions import version_number
from rollout.trainer.batches.comparison import LogprobComparison
from rollout.trainer.ranks.reading import StepSummary


@dataclass(frozen=True, slots=True)
class Spread:
    """How far some numbers are spread."""

    count: int = 0
    """How many numbers there are."""
    total: float = 0.0
    """Their sum."""
    least: float = math.inf
    """The smallest of them; infinite if there are none."""
    most: float = -math.inf
    """The largest of them; minus infinity if there are none."""

    @classmethod
    def of(cls, values: torch.Tensor) -> Self:
        """Return the spread of the finite values."""
        finite = values[values.isfinite()].double()
        if not len(finite):
            return cls()
        return cls(len(finite), finite.sum().item(), finite.min().item(), finite.max().item())

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Return the spread of all numbers in these parts."""
        spreads = list(parts)
        return cls(
            sum(part.count for part in spreads),
            sum(part.total for part in spreads),
            min((part.least for part in spreads), default=math.inf),
            max((part.most for part in spreads), default=-math.inf),
        )

    def items(self, name: str, *numbers: str) -> Iterator[tuple[str, float]]:
        """Yield `least`, `mean` or `most` under the name; `{}` in it becomes min, mean or max."""
        if self.count:
            values = {"min": self.least, "mean": self.total / self.count, "max": self.most}
            yield from ((name.format(number), values[number]) for number in numbers)


@dataclass(frozen=True, slots=True)
class RankMeasures:
    """What one rank measured in a step, before the weights changed."""

    comparison: LogprobComparison
    """The log-probs of the engine and of the trainer."""
    difference: Spread
    """The absolute differences of the log-probs of all tokens that train, of whatever version."""
    ratio: Spread
    """The ratios of the probabilities: of the tokens, or with a correction as it was applied."""
    lengths: Spread
    """The number of tokens that train in each sample."""
    tokens: int
    """The number of tokens of all samples."""

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Return the measures of all ranks."""
        ranks = list(parts)
        return cls(
            LogprobComparison.merged(rank.comparison for rank in ranks),
            Spread.merged(rank.difference for rank in ranks),
            Spread.merged(rank.ratio for rank in ranks),
            Spread.merged(rank.lengths for rank in ranks),
            sum(rank.tokens for rank in ranks),
        )


def logged_metrics(summary: StepSummary, measures: RankMeasures) -> Iterator[tuple[str, float]]:
    """Yield the name and the value of each metric of a step."""
    yield "reward", summary.reward
    yield "reward_std", summary.reward_std
    yield "frac_reward_zero_std", summary.uniform_groups / len(summary.groups)
    for name, reward in summary.rewards.items():
        yield f"rewards/{name}/mean", reward
    yield from measures.lengths.items("completions/{}_length", "mean", "min", "max")
    yield from measures.difference.items("sampling/sampling_logp_difference/{}", "mean", "max")
    yield from measures.ratio.items("sampling/importance_sampling_ratio/{}", "min", "mean", "max")
    comparison = measures.comparison
    yield from _staleness(comparison).items("rollout/staleness/{}", "mean", "max")
    yield "rollout/published_share", comparison.published_share
    if comparison.compared_tokens:
        yield "rollout/published_logp_difference/mean", comparison.mean_difference
        yield "rollout/published_logp_difference/max", comparison.max_difference
    yield "rollout/groups", float(len(summary.groups))
    yield "rollout/samples", float(summary.samples)
    yield "rollout/trained_tokens", float(summary.trained_tokens)
    yield "rollout/failed", float(summary.failed)


def _staleness(comparison: LogprobComparison) -> Spread:
    """Return how many versions the weights that sampled a token are behind the trainer's weights."""
    spreads = []
    for name, count in comparison.tokens_by_version.items():
        if (number := version_number(name)) is not None:
            behind = max(0, comparison.version - number)
            spreads.append(Spread(count, float(count * behind), behind, behind))
    return Spread.merged(spreads)
