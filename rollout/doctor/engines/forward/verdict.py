"""Says what the differences between the log-probs of an engine and a checkpoint prove, or what is wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.doctor.engines.forward.precision import TOLERANCES, EnginePrecision, Tolerance
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade
from rollout.images.processors import ResizeBackend
from rollout.records.versions import version_number

_SENSITIVITY = 5.0
"""A known mistake must differ by this many times the tolerance. Otherwise, the check could not find it."""
_CLEARLY_LARGER = 3.0
"""How many times larger the difference of a resize backend must be, so that rounding does not explain it."""


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
    def is_finite(self) -> bool:
        """Whether all log-probs are numbers."""
        return not self.invalid_tokens and math.isfinite(self.mean)

    def within(self, tolerance: Tolerance) -> bool:
        """Whether rounding explains the difference."""
        return self.is_finite and self.largest <= tolerance.largest and self.mean <= tolerance.mean

    def exceeds(self, tolerance: Tolerance, times: float) -> bool:
        """Whether the difference is more than `times` the tolerance."""
        return not self.is_finite or self.largest > times * tolerance.largest or self.mean > times * tolerance.mean

    def __str__(self) -> str:
        if not self.is_finite:
            return f"{self.invalid_tokens} of {self.tokens + self.invalid_tokens} log-probs are not finite"
        return f"at most {self.largest:.0e}, {self.mean:.0e} on average"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in one conversation.

    Attributes:
        by_backend: the difference with each resize backend; the key of a model without images is None.
        unavailable_backends: the reason for each backend that cannot be used here.
        default_backend: the backend that `Materializer.from_pretrained` takes by itself.
        before_images: the difference in the first turn, which shows no image.
        controls: the differences that known mistakes would make with the best backend, by what is wrong in them.
        logprobs_mode: vLLM's name for the log-probs that the engine gives.
        effect_of_ban: the largest difference between log-probs before and after the ban of tokens.
    """

    by_backend: Mapping[ResizeBackend | None, Difference] = field(default_factory=dict)
    unavailable_backends: Mapping[ResizeBackend, str] = field(default_factory=dict)
    default_backend: ResizeBackend | None = None
    before_images: Difference = Difference(0, math.nan, math.nan)
    controls: Mapping[str, Difference] = field(default_factory=dict)
    logprobs_mode: str = "processed_logprobs"
    effect_of_ban: float = 0.0

    @property
    def best_backend(self) -> ResizeBackend | None:
        """The resize backend with the smallest difference; None for a model without images."""
        return min(
            self.by_backend,
            key=lambda backend: self.by_backend[backend].mean if self.by_backend[backend].is_finite else math.inf,
        )

    @property
    def best(self) -> Difference:
        """The difference with the best backend."""
        return self.by_backend[self.best_backend]


@dataclass(frozen=True, slots=True)
class ForwardVerdict:
    """Judges a measurement.

    Attributes:
        measurement: what was measured.
        engine: how the engine computes.
        dtype: the type of the numbers in which the checkpoint was computed.
        versions: the versions of the engine's weights, as it names them.
        checkpoint: the directory of the checkpoint, for errors.
        played: what was played, such as `3 turns with 2 images`.
    """

    measurement: Measurement
    engine: EnginePrecision
    dtype: str
    versions: tuple[str, ...]
    checkpoint: str
    played: str

    @property
    def tolerance(self) -> Tolerance:
        """The differences that rounding explains."""
        return TOLERANCES[self.dtype]

    def finding(self) -> str:
        """Return what was proven.

        Raises:
            CheckFailed: engine and checkpoint differ.
            CheckNotMade: the measurement proves nothing.
        """
        if not self.measurement.by_backend:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.measurement.unavailable_backends.items())
            raise CheckNotMade(f"no library that resizes images is installed here. {reasons}")
        if not self.measurement.best.within(self.tolerance):
            self._raise_for_difference()
        unnoticed = [
            f"{mistake}: {difference}"
            for mistake, difference in self.measurement.controls.items()
            if not difference.exceeds(self.tolerance, _SENSITIVITY)
        ]
        if unnoticed:
            raise CheckNotMade(
                f"the log-probs are equal ({self.measurement.best}), but this proves little, because they would hardly "
                f"change with a known mistake ({'; '.join(unnoticed)}). Let both sides compute in float32 (vLLM's "
                "--dtype float32); if they do, this network hardly looks at images"
            )
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        measurement = self.measurement
        noticed = "; ".join(f"with {mistake}, {difference}" for mistake, difference in measurement.controls.items())
        return [
            f"a forward pass of the checkpoint gives the engine's log-probs for all {measurement.best.tokens} sampled "
            f"tokens of {self.played}: they differ by {measurement.best}",
            f"allowed: {self._allowed()}",
            *self._backend_lines(),
            self._ban_line(),
            f"a mistake would show: {noticed}",
        ]

    def _allowed(self) -> str:
        tolerance = self.tolerance
        source = (
            "the engine computes in" if self.engine.dtype else "the engine does not say its type; the checkpoint is"
        )
        return f"at most {tolerance.largest:g}, {tolerance.mean:g} on average, because {source} {self.dtype}"

    def _backend_lines(self) -> list[str]:
        measurement = self.measurement
        best = measurement.best_backend
        if best is None:
            return ["the model takes no images, so no image was played"]
        lines = [f"resized with {name}: {difference}" for name, difference in measurement.by_backend.items()]
        lines += [f"resized with {name}: not measured, {why}" for name, why in measurement.unavailable_backends.items()]
        others = [difference for name, difference in measurement.by_backend.items() if name != best]
        if any(other.mean < _CLEARLY_LARGER * measurement.best.mean for other in others):
            return [*lines, "rounding hides the difference between the libraries; the line `pixels` names the engine's"]
        default = " (the default here)" if best == measurement.default_backend else ""
        return [*lines, f"so train with Materializer.from_pretrained(checkpoint, backend={best!r}){default}"]

    def _ban_line(self) -> str:
        mode = self.measurement.logprobs_mode
        if self.engine.logprobs_mode is None and self.measurement.effect_of_ban <= self.tolerance.largest:
            return "the ban of pad tokens changes no log-prob measurably, so with or without it is right"
        if mode == "raw_logprobs":
            return f"they are from before the ban of pad tokens ({mode}): leave the logits as they are"
        return f"they are from after the ban of pad tokens ({mode}): apply batch.without_banned(logits)"

    def _raise_for_difference(self) -> None:
        measurement, best = self.measurement, self.measurement.best
        found = f"the log-probs of the engine and of {self.checkpoint} differ by {best} (allowed: {self._allowed()})"
        if measurement.logprobs_mode.endswith("logits"):
            raise CheckFailed(
                f"the engine gives {measurement.logprobs_mode} in the place of log-probs",
                "start vLLM with --logprobs-mode processed_logprobs, or with rollout serve vllm, which sets it",
            )
        pushed = [version for version in self.versions if version_number(version)]
        if pushed:
            raise CheckNotMade(
                f"{found}, but a trainer has pushed version {pushed[-1]} to the engine. Set model.path to a checkpoint "
                "with the weights of this version, or start the engine again with the checkpoint in model.path"
            )
        if self.engine.quantization is not None:
            raise CheckNotMade(
                f"{found}, but the engine quantises its weights ({self.engine.quantization}). Run the check with an "
                "engine that does not"
            )
        if self.engine.dtype is None and best.within(TOLERANCES["bfloat16"]):
            raise CheckNotMade(
                f"{found}, but by no more than if it computed in bfloat16, and it does not say its type. Start vLLM "
                "with --dtype float32, or with VLLM_SERVER_DEV_MODE=1 (rollout serve vllm without --no-updates)"
            )
        if not measurement.before_images.within(self.tolerance):
            raise CheckFailed(
                f"{found}, and already by {measurement.before_images} before the first image. So the engine has other "
                "weights, or another config.json",
                "let the engine serve the checkpoint in model.path, or set model.path to the checkpoint that it serves",
            )
        found = f"{found}, but only by {measurement.before_images} before the first image"
        fitting = [mistake for mistake, other in measurement.controls.items() if other.within(self.tolerance)]
        if fitting and measurement.best_backend is not None:
            raise CheckFailed(
                f"{found}. The engine's pixels are normalised with {fitting[0]}, and ours with the other constants in "
                f"the processor configuration of {self.checkpoint}",
                "take preprocessor_config.json (or processor_config.json) of the checkpoint that the engine serves",
            )
        missing = ", ".join(measurement.unavailable_backends)
        raise CheckFailed(
            f"{found}. So the pixels, the positions or the weights of the vision tower differ",
            (f"install {missing}, because the engine may resize images with it; and " if missing else "")
            + "take config.json, the processor configuration and all weights of the checkpoint that the engine serves",
        )
