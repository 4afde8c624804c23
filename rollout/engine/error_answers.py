"""What an engine's error answer says: its own reason, and the sampling key that it refuses."""

import re
from typing import Any

import orjson

from rollout.config.sampling import SAMPLING_KEYS

_MAX_CHARS = 2000
_REASON_IN_VALIDATION_ERROR = re.compile(r"""'msg': (['"])(?:Value error, )?(?P<reason>.*?)\1[,}]""", re.DOTALL)
"""vLLM writes the errors of a request's body as the text of a dict."""
_FIRST_WORD = re.compile(r"\W*(\w+)")


def error_message(content: bytes) -> str:
    """Return the engine's own reason, or else the text of the answer."""
    message, _ = _read_error(content)
    if message is None:
        message = " ".join(content[: 2 * _MAX_CHARS].decode(errors="replace").split())
    return message[:_MAX_CHARS] or "(it gave no reason)"


def refused_sampling_key(content: bytes) -> str | None:
    """Return the sampling key that an engine refuses, and its reason; None if it refuses something else."""
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
    """Whether an engine's reason names `logit_bias`, alone or among others, as vLLM's for speculative decoding does."""
    message, parameter = _read_error(content)
    return "logit_bias" in f"{message} {parameter}"


def _read_error(content: bytes) -> tuple[str | None, str]:
    """Return the message and the parameter of an error in the form of OpenAI's API, as far as they are there."""
    try:
        error: Any = orjson.loads(content)["error"]
        return str(error["message"]), str(error.get("param") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, ""
