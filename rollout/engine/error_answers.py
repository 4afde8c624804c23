"""Reads an engine's answer: returns its body, or raises the error that its status and its reason describe."""

import re
from typing import Any

import orjson

from rollout.config.sampling import SAMPLING_KEYS
from rollout.engine.errors import (
    EngineBroken,
    EngineMisconfigured,
    EngineNotFound,
    EnginePaused,
    EngineRefused,
    EngineUnavailable,
    EngineUnreachable,
    KeyRefused,
    LogitBiasRefused,
)

_UNAVAILABLE_STATUSES = (429, 502, 503, 504)
_BAD_REQUEST_STATUSES = (400, 422)
_FIX_BY_STATUS = {
    401: " (is the engine's API key in the environment variable that engine.api_key_env names?)",
    403: " (vLLM answers 403 unless it was started with --enable-scale-out)",
    404: " (is engine.urls the root of the server, without /v1, and does it serve model.name?)",
}
_MAX_CHARS = 2000
_REASON_IN_VALIDATION_ERROR = re.compile(r"""'msg': (['"])(?:Value error, )?(?P<reason>.*?)\1[,}]""", re.DOTALL)
"""Matches the reason in vLLM's error about a request's body, which is a Python dict as text."""
_FIRST_WORD = re.compile(r"\W*(\w+)")


def require_success(url: str, status: int, content: bytes) -> bytes:
    """Return the content of an answer with a 2xx status; for another status, raise the error that it means.

    Raises:
        EngineError: see `rollout.engine.transport.EngineTransport.post`.
    """
    if 200 <= status < 300:
        return content
    message = (
        f"the engine at {url} answered with status {status}: {error_message(content)}{_FIX_BY_STATUS.get(status, '')}"
    )
    if status in _BAD_REQUEST_STATUSES:
        if (refusal := refused_sampling_key(content)) is not None:
            ending = "" if refusal.endswith(".") else "."
            message = (
                f"{refusal}{ending} The engine at {url} refused this key of engine.sampling or chat(sampling=…) with "
                f"status {status}."
            )
        raise (LogitBiasRefused if names_logit_bias(content) else EngineRefused)(message)
    if status in _UNAVAILABLE_STATUSES:
        is_paused = status == 503 and _says_generation_is_paused(content)
        raise (EnginePaused if is_paused else EngineUnavailable)(message)
    if status in _FIX_BY_STATUS:
        raise {401: KeyRefused, 404: EngineNotFound}.get(status, EngineMisconfigured)(message)
    if status >= 500:
        raise EngineBroken(f"{message} (see the engine's log)")
    raise EngineRefused(message)


def unreachable(url: str, error: Exception) -> EngineUnreachable:
    """Return the error of a request that got no answer."""
    return EngineUnreachable(
        f"no answer from the engine at {url}: {str(error) or type(error).__name__}. "
        "Is the engine running, and is engine.urls right?"
    )


def error_message(content: bytes) -> str:
    """Return the reason in an engine's answer; if there is none, the text of the answer."""
    message, _ = _read_error(content)
    if message is None:
        message = " ".join(content[: 2 * _MAX_CHARS].decode(errors="replace").split())
    return message[:_MAX_CHARS] or "(the engine gave no reason)"


def refused_sampling_key(content: bytes) -> str | None:
    """Return a text with the sampling key that an engine refuses and the reason; None if it refuses something else."""
    message, parameter = _read_error(content)
    if message is None:
        return None
    in_validation_error = _REASON_IN_VALIDATION_ERROR.search(message)
    reason = in_validation_error["reason"] if in_validation_error else message
    first_word = _FIRST_WORD.match(reason)
    names = [*reversed(parameter.split(".")), first_word[1] if first_word else ""]
    key = next((name for name in names if name in SAMPLING_KEYS), None)
    return key and f"{key}: {reason.removeprefix(f'sampling_params.{key}: ')[:_MAX_CHARS]}"


def names_logit_bias(content: bytes) -> bool:
    """Whether an engine's reason names `logit_bias`, alone or among other keys."""
    message, parameter = _read_error(content)
    return "logit_bias" in f"{message} {parameter}"


def _says_generation_is_paused(content: bytes) -> bool:
    """Whether an answer is the one of vLLM 0.33 to a new request during a pause with `wait` or `abort`."""
    try:
        answer = orjson.loads(content)
    except ValueError:
        return False
    match answer:
        case {"error": {"type": "ServiceUnavailableError", "message": str(message)}}:
            return message.startswith("Generation is paused.")
    return False


def _read_error(content: bytes) -> tuple[str | None, str]:
    """Return the message and the parameter of an error in the form of OpenAI's API; for another form, None and ""."""
    try:
        error: Any = orjson.loads(content)["error"]
        return str(error["message"]), str(error.get("param") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, ""
