"""Writes refusals as the error objects of OpenAI's APIs."""

from typing import Any

from rollout.gateway.dialects.base import RefusalReason, RequestRefused

_TYPES = {
    RefusalReason.UNKNOWN_KEY: "authentication_error",
    RefusalReason.NOT_FOUND: "not_found_error",
    RefusalReason.FAILED: "server_error",
}
_CODES = {
    RefusalReason.UNKNOWN_KEY: "invalid_api_key",
    RefusalReason.TOO_LARGE: "request_too_large",
    RefusalReason.ENDED: "rollout_ended",
    RefusalReason.NOT_FOUND: "not_found",
    RefusalReason.FAILED: "server_error",
}


def error_object(refusal: RequestRefused) -> dict[str, Any]:
    """Return the error of a refusal."""
    return {
        "message": str(refusal),
        "type": _TYPES.get(refusal.reason, "invalid_request_error"),
        "param": refusal.parameter,
        "code": _CODES.get(refusal.reason),
    }
