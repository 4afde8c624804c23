"""Says why the gateway refused a request of a program, and what corrects it."""

import orjson

from rollout.doctor.agent.faults import DIALECTS
from rollout.doctor.agent.proxy import SeenRequest

MIN_ERROR_STATUS = 400
"""The smallest status of an error."""
_NOT_FOUND = 404
_VERSION = "/v1"


def error_text(request: SeenRequest) -> str:
    """Return the text of the error that a request got."""
    try:
        return str(orjson.loads(request.error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return request.error.decode("utf-8", "replace")[:200]


def refusal_fix(request: SeenRequest) -> str | None:
    """Return what corrects a request that was refused; None if the error itself says it."""
    text = error_text(request)
    if "gateway.constrained" in text:
        return "gateway.constrained: allow, or an option of the agent that leaves this key out"
    if "leave it out" in text:
        return "an option of the agent that leaves this out"
    return address_fix(request) if request.status == _NOT_FOUND else None


def address_fix(request: SeenRequest) -> str | None:
    """Return what corrects an address that the program made from another one; None if the path is no such address."""
    path = request.path
    if path.startswith(f"{_VERSION}{_VERSION}/messages"):
        return "an Anthropic client needs ANTHROPIC_BASE_URL or {anthropic_base_url}, which do not end in /v1"
    if path.startswith(f"{_VERSION}{_VERSION}/"):
        return "OPENAI_BASE_URL already ends in /v1, so the program must not add /v1 to it"
    if f"{_VERSION}{path}" in DIALECTS:
        return "OPENAI_BASE_URL ends in /v1, so the program must not remove it"
    return None
