"""The errors of requests to an engine.

After an error with `infrastructure`, another attempt may succeed. After any other error, it would fail again.
"""

from rollout.errors import RolloutError


class EngineError(RolloutError):
    """The base of all errors of this package."""


class EngineUnreachable(EngineError):
    """The engine cannot be reached, or the connection broke."""

    infrastructure = True


class EngineTimeout(EngineError):
    """The engine did not answer before the deadline."""

    infrastructure = True


class EngineUnavailable(EngineError):
    """The engine, or a proxy before it, answered that it cannot serve now (429, 502, 503, 504)."""

    infrastructure = True


class EnginePaused(EngineUnavailable):
    """The engine is paused for new weights, and refuses new requests until it resumes (503, from vLLM 0.33)."""


class EngineBehind(EngineUnavailable):
    """The engine does not have the weights that the trainer requires; it is not used until it has them."""


class EngineBroken(EngineError):
    """The engine failed while it handled this request (500, or another 5xx except 502, 503 and 504)."""

    infrastructure = True


class EngineRefused(EngineError):
    """The engine refused this request (4xx)."""


class LogitBiasRefused(EngineRefused):
    """The engine refused this request (400, 422) and named `logit_bias`, which bans tokens."""


class EngineMisconfigured(EngineRefused):
    """The engine refuses every request (401, 403, 404), because the configuration is wrong."""

    infrastructure = True


class KeyRefused(EngineMisconfigured):
    """The engine requires another API key (401)."""


class EngineNotFound(EngineMisconfigured):
    """The engine has no such route, or no such model (404)."""


class ModelNotServed(EngineError):
    """The engine serves other models than the configured one.

    Attributes:
        served: the names of the models that it serves.
    """

    infrastructure = True

    def __init__(self, message: str, served: tuple[str, ...]) -> None:
        super().__init__(message)
        self.served = served


class RequestRefusedLocally(EngineError):
    """The request was not sent, because the engine would answer it with garbage, or crash."""


class EngineMismatch(EngineError):
    """The engine saw a different prompt than we sent, or answered in an unknown form."""


class InvalidEvidence(EngineError):
    """The log-probs or other evidence in an answer do not match its sampled tokens."""


class EngineAborted(EngineError):
    """The engine aborted this request before the answer was complete."""

    infrastructure = True


class UnusableCompletion(EngineError):
    """The answer is empty, or has a token that the policy must not sample, such as an image pad token."""
