"""What can go wrong between a rollout and its engine.

An error with `infrastructure` may not occur in another attempt; the others would only occur again.
"""

from rollout.errors import RolloutError


class EngineError(RolloutError):
    """The engine is gone, refused, or answered something that must not be trained on."""


class EngineUnreachable(EngineError):
    """No connection to the engine, or it closed one."""

    infrastructure = True


class EngineTimeout(EngineError):
    """The engine did not answer before the deadline."""

    infrastructure = True


class EngineUnavailable(EngineError):
    """The engine, or a proxy before it, answered that it cannot serve now (429, 502, 503, 504)."""

    infrastructure = True


class EngineBehind(EngineUnavailable):
    """The engine does not have the weights that the trainer requires; it is not used until it has them."""


class EngineBroken(EngineError):
    """The engine failed over this request (500, or another 5xx that is not worth a second try)."""

    infrastructure = True


class EngineRefused(EngineError):
    """The engine refused this request (4xx)."""


class LogitBiasRefused(EngineRefused):
    """The engine refused this request (400, 422) and named `logit_bias`, by which tokens are banned."""


class EngineMisconfigured(EngineRefused):
    """The engine refuses every request (401, 403, 404): the configuration is wrong, not this request."""

    infrastructure = True


class EngineNotFound(EngineMisconfigured):
    """The engine has no such route, or no such model (404)."""


class ModelNotServed(EngineError):
    """The engine serves other models than the configured one."""

    infrastructure = True


class RequestRefusedLocally(EngineError):
    """A request that an engine would answer with garbage, or that would crash it; it was not sent."""


class EngineMismatch(EngineError):
    """The engine saw another prompt than ours; its answer must not be trained on."""


class InvalidEvidence(EngineError):
    """The log-probs or other evidence in the engine's answer do not belong to exactly the tokens that it sampled."""


class EngineAborted(EngineError):
    """The engine aborted this request before the answer was complete."""

    infrastructure = True


class UnusableCompletion(EngineError):
    """The policy sampled an image pad token: no prompt may contain this answer, and no pixels belong to it."""
