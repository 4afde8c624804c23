"""Says what the differences between the log-probs of an engine and a checkpoint prove, or what is wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.doctor.engines.forward.precision import TOLERANCES, EnginePrecision, Tolerance
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade
from rollout.images.processors import ResizeBackend
from rollout.records.versions import version_number

_CLEARLY_LARGER = 5.0
"""How many times larger a mean difference must be than another, so that rounding does not explain it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between the log-probs of the engine and of the checkpoint.

    Attributes:
        tokens: the number of tokens that were compared.
        largest: the largest absolute difference; NaN if nothing was compared.
        mean: the mean of the absolute differences; NaN if nothing was compared.
        invalid_tokens: the number of tokens that have no finite log-prob on one side.
    """

    tokens: int
    largest: float
    mean: float
    invalid_tokens: int = 0

    @property
    def order(self) -> float:
        """The mean, to compare two differences; infinity if a log-prob is not finite."""
        return math.inf if self.invalid_tokens or math.isnan(self.mean) else self.mean

    def within(self, tolerance: Tolerance) -> bool:
        """Whether rounding explains the difference."""
        return self.order <= tolerance.mean and self.largest <= tolerance.largest

    def is_clearly_smaller_than(self, other: "Difference") -> bool:
        """Whether rounding does not explain that the other difference is larger."""
        return self.order * _CLEARLY_LARGER < other.order

    def __str__(self) -> str:
        if self.invalid_tokens:
            return f"{self.invalid_tokens} of {self.tokens + self.invalid_tokens} log-probs are not finite"
        return f"at most {self.largest:.0e}, {self.mean:.0e} on average"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in one conversation.

    Attributes:
        text: the difference in the answers that no image precedes.
        by_backend: the difference in the answers after images, for each resize backend; empty if the model takes none.
        unavailable_backends: the reason for each backend that cannot be used here.
        default_backend: the backend that `Materializer.from_pretrained` takes by itself; None without images.
        mistakes: the differences with known mistakes in our inputs, by what is wrong in them.
        logprobs_mode: vLLM's name for the log-probs that the engine gives.
        effect_of_ban: the largest difference between log-probs before and after the ban of tokens.
    """

    text: Difference = Difference(0, math.nan, math.nan)
    by_backend: Mapping[ResizeBackend, Difference] = field(default_factory=dict)
    unavailable_backends: Mapping[ResizeBackend, str] = field(default_factory=dict)
    default_backend: ResizeBackend | None = None
    mistakes: Mapping[str, Difference] = field(default_factory=dict)
    logprobs_mode: str = "processed_logprobs"
    effect_of_ban: float = 0.0

    @property
    def best_backend(self) -> ResizeBackend | None:
        """The resize backend with the smallest difference; None without images."""
        return min(self.by_backend, key=lambda backend: self.by_backend[backend].order, default=None)

    @property
    def best(self) -> Difference:
        """The difference in the answers after images, with the best backend; in all answers without images."""
        return self.text if self.best_backend is None else self.by_backend[self.best_backend]


@dataclass(frozen=True, slots=True)
class ForwardVerdict:
    """Judges a measurement.

    Attributes:
        measurement: what was measured.
        engine: how the engine computes.
        dtype: the type of the numbers in which the checkpoint was computed.
        versions: the versions of the engine's weights, as it names them.
        checkpoint: the directory of the checkpoint, for errors.
        played: what was played, such as `3 turns with 2 new images`.
    """

    measurement: Measurement
    engine: EnginePrecision
    dtype: str
    versions: tuple[str, ...]
    checkpoint: str
    played: str

    def finding(self) -> str:
        """Return what was proven.

        Raises:
            CheckFailed: engine and checkpoint differ.
            CheckNotMade: the measurement proves nothing.
        """
        measurement, tolerance = self.measurement, TOLERANCES[self.dtype]
        if measurement.unavailable_backends and not measurement.by_backend:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in measurement.unavailable_backends.items())
            raise CheckNotMade(f"no library that resizes images can be used here. {reasons}")
        self._raise_for_mistake(tolerance)
        if not (measurement.text.within(tolerance) and measurement.best.within(tolerance)):
            self._raise_for_difference(tolerance)
        unnoticed = [
            f"{mistake}: {difference}"
            for mistake, difference in measurement.mistakes.items()
            if difference.within(tolerance) or not measurement.best.is_clearly_smaller_than(difference)
        ]
        if unnoticed:
            raise CheckNotMade(
                f"the log-probs are equal ({measurement.best}), but hardly depend on the images: they would also be "
                f"equal with a known mistake ({'; '.join(unnoticed)}). So this says nothing about pixels. Start the "
                "engine with --dtype float32, which shows smaller differences"
            )
        return "\n".join(self._lines())

    def _raise_for_mistake(self, tolerance: Tolerance) -> None:
        """Raise the known mistake that gives the engine's log-probs, if our inputs do not: then we made it."""
        measurement = self.measurement
        for mistake, difference in measurement.mistakes.items():
            fits = difference.within(tolerance) and difference.is_clearly_smaller_than(measurement.best)
            if measurement.by_backend and fits:
                raise CheckFailed(
                    f"{self._difference(measurement.best)}. With {mistake}, they would differ by {difference}. So the "
                    f"engine normalises pixels with these constants, but the processor configuration of "
                    f"{self.checkpoint} has others",
                    "take preprocessor_config.json (or processor_config.json) of the checkpoint that the engine serves",
                )

    def _raise_for_difference(self, tolerance: Tolerance) -> None:
        measurement = self.measurement
        larger = max(measurement.text, measurement.best, key=lambda difference: difference.order)
        if measurement.logprobs_mode.endswith("logits"):
            raise CheckFailed(
                f"the engine gives {measurement.logprobs_mode} in the place of log-probs",
                "start vLLM with --logprobs-mode processed_logprobs, or with rollout serve vllm, which sets it",
            )
        pushed = [version for version in self.versions if version_number(version)]
        if pushed:
            raise CheckNotMade(
                f"{self._difference(larger)}, but a trainer has pushed version {pushed[-1]} to the engine. Set "
                "model.path to a checkpoint with the weights of this version, or start the engine again with the "
                "checkpoint in model.path"
            )
        if self.engine.quantization is not None:
            raise CheckNotMade(
                f"{self._difference(larger)}, but the engine quantises its weights ({self.engine.quantization}). Run "
                "the check with an engine that does not"
            )
        if self.engine.dtype is None and larger.within(TOLERANCES["bfloat16"]):
            raise CheckNotMade(
                f"{self._difference(larger)}. An engine that computes in bfloat16 may differ so much, but this one "
                "does not say its type. Start vLLM with --dtype float32, or with VLLM_SERVER_DEV_MODE=1 (rollout serve "
                "vllm without --no-updates)"
            )
        if not measurement.text.within(tolerance):
            raise CheckFailed(
                f"{self._difference(measurement.text)}, already before the first image. So the engine has other "
                "weights than this checkpoint, or another config.json",
                "let the engine serve the checkpoint in model.path, or set model.path to the checkpoint that it serves",
            )
        missing = ", ".join(measurement.unavailable_backends)
        raise CheckFailed(
            f"{self._difference(measurement.best)}, but only by {measurement.text} before the first image. So pixels, "
            "positions or the weights of the vision tower differ",
            (f"install {missing}, because the engine may resize images with it; and " if missing else "")
            + "take config.json, the processor configuration and all weights from the engine's checkpoint",
        )

    def _difference(self, difference: Difference) -> str:
        return (
            f"the log-probs of the engine and of {self.checkpoint} differ by {difference} (allowed: {self._allowed()})"
        )

    def _allowed(self) -> str:
        tolerance = TOLERANCES[self.dtype]
        reason = (
            "the engine computes in" if self.engine.dtype else "the engine does not say its type, and the checkpoint is"
        )
        return f"at most {tolerance.largest:.0e}, {tolerance.mean:.0e} on average, because {reason} {self.dtype}"

    def _lines(self) -> list[str]:
        measurement = self.measurement
        tokens = measurement.text.tokens + (measurement.best.tokens if measurement.by_backend else 0)
        mistakes = "; ".join(f"with {mistake}, {difference}" for mistake, difference in measurement.mistakes.items())
        return [
            f"a forward pass of the checkpoint gives the engine's log-probs for {tokens} sampled tokens of "
            f"{self.played}: they differ by {measurement.best}",
            f"allowed: {self._allowed()}",
            *self._backend_lines(),
            self._ban_line(),
            f"a mistake would show: {mistakes}",
        ]

    def _backend_lines(self) -> list[str]:
        measurement, best_backend = self.measurement, self.measurement.best_backend
        if best_backend is None:
            return ["the model takes no images, so only text was played"]
        lines = [f"resized with {name}: {difference}" for name, difference in measurement.by_backend.items()]
        lines += [f"resized with {name}: not measured. {why}" for name, why in measurement.unavailable_backends.items()]
        others = [difference for name, difference in measurement.by_backend.items() if name != best_backend]
        if not all(measurement.best.is_clearly_smaller_than(other) for other in others):
            return [*lines, "rounding hides how the libraries differ; the line `pixels` names the engine's"]
        default = " (the default here)" if best_backend == measurement.default_backend else ""
        return [*lines, f'so train with Materializer.from_pretrained(checkpoint, backend="{best_backend}"){default}']

    def _ban_line(self) -> str:
        mode = self.measurement.logprobs_mode
        if self.engine.logprobs_mode is None and self.measurement.effect_of_ban <= TOLERANCES[self.dtype].largest:
            return "the ban of pad tokens changes no log-prob measurably"
        if mode == "raw_logprobs":
            return f"they are from before the ban of pad tokens ({mode}): leave the logits as they are"
        return f"they are from after the ban of pad tokens ({mode}): apply batch.without_banned(logits)"
