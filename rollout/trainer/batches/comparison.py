"""Compares the log-probs of the engine with those of the trainer, to tell a correct loop from a broken one.

    comparison = compare_logprobs(batch, trainer_logprobs, version)      # before the weights change
    for finding in comparison.findings():
        print(finding.severity, finding.text)

If the same weights compute both log-probs, they are equal up to rounding. Images in the wrong order, log-probs at the
wrong token or weights that never reached the engine make them differ, long before the reward shows it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch

from rollout.records.versions import version_number
from rollout.trainer.batches.tensors import Batch

FindingKind = Literal[
    "invalid",
    "nothing compared",
    "max difference",
    "mean difference",
    "newer versions",
    "published share",
    "clipped share",
]
"""What a finding is about: one name for each check."""


@dataclass(frozen=True, slots=True)
class ComparisonThresholds:
    """The limits that `LogprobComparison.findings` applies.

    Attributes:
        max_difference: the largest difference of a single token; above it is an error. None: no limit, because in
            bfloat16 the log-probs of single tokens differ a lot. Set 1e-3 if both sides compute in float32.
        mean_difference: the largest mean difference; above it is an error. The default leaves room for bfloat16.
        published_share: the smallest share of the trained tokens in answers that the trainer's version sampled
            completely; only these are compared. Below it is a warning, and 0 tokens are an error, because nothing is
            compared. If rollouts may be stale (`policy.max_staleness` above 0), set the share that you expect; 0 if a
            step may have no such answer. Leave 1 for the first step: there is only one version then.
        clipped_share: the largest share of tokens whose ratio leaves the clip range; above it is a warning.
    """

    max_difference: float | None = None
    mean_difference: float = 0.05
    published_share: float = 1.0
    clipped_share: float = 0.2


@dataclass(frozen=True, slots=True)
class ComparisonFinding:
    """A threshold that a comparison does not keep.

    Attributes:
        severity: "error" if training should end, because it learns from wrong data; "warning" if it may continue.
        kind: the check that failed. A loop that prints each warning once remembers the kinds that it printed.
        text: what is wrong, and what to do.
    """

    severity: Literal["warning", "error"]
    kind: FindingKind
    text: str


@dataclass(frozen=True, slots=True)
class LogprobComparison:
    """The log-probs of the engine and of the trainer for the tokens that train in a batch.

    Attributes:
        version: the number of the version that computed the trainer's log-probs.
        tokens_by_version: for the name of each version, the number of trained tokens that it sampled.
        trained_tokens: the number of tokens that train. More than the sum of `tokens_by_version` if an engine did not
            report the version of its tokens.
        published_tokens: the number of trained tokens in answers that the trainer's version sampled completely.
        compared_tokens: the number of these tokens that have finite log-probs on both sides. Their differences count.
        invalid_tokens: the number of trained tokens with a log-prob that is not finite, on either side.
        clipped_tokens: the number of trained tokens, compared or not, whose ratio leaves 1 - `clip` … 1 + `clip`.
        clip: the clip range of the ratio between the probabilities of the trainer and the engine.
        max_difference: the largest absolute difference of a compared token; NaN if nothing was compared.
        total_difference: the sum of the absolute differences of all compared tokens.
    """

    version: int
    tokens_by_version: Mapping[str, int]
    trained_tokens: int
    published_tokens: int
    compared_tokens: int
    invalid_tokens: int
    clipped_tokens: int
    clip: float
    max_difference: float
    total_difference: float

    @property
    def mean_difference(self) -> float:
        """The mean absolute difference of the compared tokens; NaN if nothing was compared."""
        return self.total_difference / self.compared_tokens if self.compared_tokens else math.nan

    @property
    def published_share(self) -> float:
        """The share of the trained tokens in answers sampled completely by the trainer's version; 1 if none trains."""
        return self.published_tokens / self.trained_tokens if self.trained_tokens else 1.0

    @property
    def clipped_share(self) -> float:
        """The clipped share of the trained tokens; 0 if no token trains."""
        return self.clipped_tokens / self.trained_tokens if self.trained_tokens else 0.0

    @classmethod
    def merged(cls, comparisons: Iterable[Self]) -> Self:
        """Return the comparison of all tokens in these comparisons, such as those of all ranks in one step.

        Raises:
            ValueError: there is no comparison, or they have different versions or clip ranges.
        """
        parts = list(comparisons)
        settings = {(part.version, part.clip) for part in parts}
        if len(settings) != 1:
            found = ", ".join(f"version {version} with clip {clip:g}" for version, clip in sorted(settings))
            raise ValueError(
                f"comparisons can be merged only if they have one version and one clip range; found: {found or 'none'}"
            )
        [(version, clip)] = settings
        tokens_by_version: Counter[str] = Counter()
        for part in parts:
            tokens_by_version.update(part.tokens_by_version)
        return cls(
            version=version,
            tokens_by_version=dict(tokens_by_version),
            trained_tokens=sum(part.trained_tokens for part in parts),
            published_tokens=sum(part.published_tokens for part in parts),
            compared_tokens=sum(part.compared_tokens for part in parts),
            invalid_tokens=sum(part.invalid_tokens for part in parts),
            clipped_tokens=sum(part.clipped_tokens for part in parts),
            clip=clip,
            max_difference=max((part.max_difference for part in parts if part.compared_tokens), default=math.nan),
            total_difference=sum(part.total_difference for part in parts),
        )

    def findings(self, thresholds: ComparisonThresholds | None = None) -> list[ComparisonFinding]:
        """Return what is wrong, errors first; nothing if no token trains.

        A rank may have only padding. So merge the comparisons of all ranks before you judge them.
        """
        if not self.trained_tokens:
            return []
        limits = ComparisonThresholds() if thresholds is None else thresholds
        return [*self._errors(limits), *self._warnings(limits)]

    def _errors(self, limits: ComparisonThresholds) -> Iterator[ComparisonFinding]:
        if self.invalid_tokens:
            yield ComparisonFinding(
                "error",
                "invalid",
                f"{self.invalid_tokens} of {self.trained_tokens} trained tokens have a log-prob that is not finite. "
                "Check that the trainer's weights and logits are finite, and that it masks no token that the engine "
                "may sample.",
            )
        if not self.published_tokens and limits.published_share > 0:
            yield ComparisonFinding(
                "error",
                "nothing compared",
                f"no log-prob was compared: {self._sampled_by()}. An answer is compared only if the trainer's version "
                "sampled all of it. Pass the number of the version that was published before the rollouts began, and "
                "check that the engine names its weights after it. If rollouts may be stale (policy.max_staleness "
                "above 0), set ComparisonThresholds.published_share to 0 after the first step.",
            )
        if limits.max_difference is not None and self.max_difference > limits.max_difference:
            yield self._difference("max difference", f"{self.max_difference:.1e}", limits.max_difference)
        if self.mean_difference > limits.mean_difference:
            yield self._difference("mean difference", f"{self.mean_difference:.1e} on average", limits.mean_difference)

    def _difference(self, kind: FindingKind, difference: str, limit: float) -> ComparisonFinding:
        return ComparisonFinding(
            "error",
            kind,
            f"the log-probs of engine and trainer differ by {difference}, but by at most {limit:g} if nothing is "
            f"broken ({self.compared_tokens} tokens of version {self.version} compared). Check that both sides have "
            "the same weights, tokens and images, that log-probs are at the token that they belong to, and that both "
            "apply the same temperature and bans. If the sides compute in another precision, raise "
            f"ComparisonThresholds.{kind.replace(' ', '_')}.",
        )

    def _warnings(self, limits: ComparisonThresholds) -> Iterator[ComparisonFinding]:
        numbers = {name: version_number(name) for name in self.tokens_by_version}
        if any(number is not None and number > self.version for number in numbers.values()):
            yield ComparisonFinding(
                "warning",
                "newer versions",
                f"there are tokens of a version that is newer than the trainer's: {self._sampled_by()}. This is "
                "right only after the trainer was resumed from an older checkpoint. Otherwise, compare with the "
                "version that was published last.",
            )
        if 0 < self.published_tokens < limits.published_share * self.trained_tokens:
            yield ComparisonFinding(
                "warning",
                "published share",
                f"only {self.published_share:.1%} of the trained tokens are in answers that the trainer's version "
                f"sampled completely: {self._sampled_by()}. Lower policy.max_staleness if this is too stale, or lower "
                "ComparisonThresholds.published_share if you expect it.",
            )
        if self.clipped_share > limits.clipped_share:
            yield ComparisonFinding(
                "warning",
                "clipped share",
                f"for {self.clipped_tokens} of {self.trained_tokens} trained tokens, the ratio leaves 1 ± "
                f"{self.clip:g}. Clipping can stop such a token from training. Lower policy.max_staleness or the "
                "learning rate, and look at the log-prob difference.",
            )

    def _sampled_by(self) -> str:
        """Describe which versions sampled how many of the trained tokens."""
        unnamed = self.trained_tokens - sum(self.tokens_by_version.values())
        sources = [f"version {name!r} ({count})" for name, count in sorted(self.tokens_by_version.items())]
        sources += [f"an engine that reported no version ({unnamed})"] if unnamed else []
        return (
            f"the trainer's version is {self.version}, and the {self.trained_tokens} trained tokens are from "
            f"{', '.join(sources)}"
        )


def compare_logprobs(
    batch: Batch, trainer_logprobs: torch.Tensor, version: int, *, clip: float = 0.2
) -> LogprobComparison:
    """Compare the engine's log-probs of the trained tokens with those of the trainer.

    Differences are computed only for answers that `version` sampled from their first token to their last. An answer
    that was sampled by two versions continues from the states of the older one, so no weights reproduce it.

    Args:
        batch: the batch.
        trainer_logprobs: the log-prob of each token, in the shape of `batch.mask`. A vector with only the trained
            tokens (`values[batch.mask]`) is accepted too.
        version: the number of the version that computed `trainer_logprobs`. It is compared with the number at the
            end of a version's name.
        clip: the clip range of the ratio in the loss.

    Raises:
        ValueError: `trainer_logprobs` has another shape.
    """
    trained = int(batch.mask.sum())
    if trainer_logprobs.shape not in (batch.mask.shape, (trained,)):
        raise ValueError(
            f"the trainer's log-probs have the shape {tuple(trainer_logprobs.shape)}; expected "
            f"{tuple(batch.mask.shape)}, one for each token, or ({trained},), one for each token that trains"
        )
    trainer = trainer_logprobs.detach()
    if trainer.shape == batch.mask.shape:
        trainer = trainer[batch.mask.to(trainer.device)]
    differences = trainer.double().cpu().numpy() - batch.logprobs[batch.mask].double().cpu().numpy()
    version_index = batch.version_index[batch.mask].cpu().numpy()
    is_finite = np.isfinite(differences)
    # The last entry is for tokens without a reported version, whose index is -1.
    is_published = np.array([*(version_number(name) == version for name in batch.versions), False])[version_index]
    answers = torch.stack([batch.sample_index[batch.mask], batch.turn_index[batch.mask]]).cpu().numpy()
    answer = np.unique(answers, axis=1, return_inverse=True)[1].reshape(-1)
    is_whole_answer_published = np.bincount(answer, weights=~is_published)[answer] == 0
    compared = np.abs(differences[is_finite & is_whole_answer_published])
    ratio = np.exp(np.clip(differences[is_finite], -50, 50))
    return LogprobComparison(
        version=version,
        tokens_by_version={
            name: count for at, name in enumerate(batch.versions) if (count := int((version_index == at).sum()))
        },
        trained_tokens=len(differences),
        published_tokens=int(is_whole_answer_published.sum()),
        compared_tokens=len(compared),
        invalid_tokens=int((~is_finite).sum()),
        clipped_tokens=int((np.abs(ratio - 1) > clip).sum()),
        clip=clip,
        max_difference=float(compared.max()) if len(compared) else math.nan,
        total_difference=float(compared.sum()),
    )
