"""Describes the error of a rollout as texts for its record, its outcome and the log.

An exception of an environment may raise in `__str__`, contain text that is not valid in JSON, or be a group of billions
of exceptions. So it is converted once into plain texts of limited length, and all other code uses these texts.
"""

import asyncio
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.api_keys import hide_keys
from rollout.environments.base import Retry
from rollout.errors import RolloutError, error_text, printable_error, user_traceback
from rollout.texts import escape_surrogates
from rollout.worker.forgotten_await import explain_forgotten_await

_MAX_MESSAGE_CHARS = 10_000
_MAX_TYPE_CHARS = 200
_MAX_LINE_CHARS = 200
_MAX_TRACEBACK_CHARS = 20_000


class ScoreError(Exception):
    """An environment returned something that is not a score."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The texts that describe an error.

    Attributes:
        type: the name of the error's class.
        message: the text of the error.
        traceback: the traceback without our own code; None if the environment's code did not raise the error.
        full_traceback: the traceback with the frames of our own code, for the log.
    """

    type: str
    message: str
    traceback: str | None
    full_traceback: str

    def as_record(self) -> dict[str, str]:
        """Return the type and the message, as the finished record stores them."""
        return {"type": self.type, "message": self.message}


def make_printable(error: BaseException) -> BaseException:
    """Return the error itself if it can be printed, otherwise a similar error that can be printed.

    If a forgotten `await` caused the error, return an error that explains this.
    """
    try:
        return explain_forgotten_await(printable_error(error))
    except BaseException as other:  # noqa: BLE001 - any attribute of the first error may raise, so none is used
        return RuntimeError(
            f"an error of type {type(error).__name__} cannot be shown, because reading it raises {type(other).__name__}"
        )


def shorten_line(text: str) -> str:
    """Return a text shortened to one short line, for a summary."""
    return textwrap.shorten(text, _MAX_LINE_CHARS, placeholder=" …")


def requested_retry(leaf_errors: Sequence[BaseException]) -> Retry | None:
    """Return the first `Retry` among these exceptions if all others are cancellations; otherwise None."""
    retries = [error for error in leaf_errors if isinstance(error, Retry)]
    others = [error for error in leaf_errors if not isinstance(error, Retry | asyncio.CancelledError)]
    return retries[0] if retries and not others else None


def describe_failure(error: BaseException) -> Failure:
    """Return the texts of an error that `make_printable` returned. Never raise, even if the error's methods do."""
    message = hide_keys(error_text(error))
    if len(message) > _MAX_MESSAGE_CHARS:
        message = f"{message[:_MAX_MESSAGE_CHARS]} … ({len(message):,} characters)"
    try:
        full_traceback = hide_keys("".join(traceback.format_exception(error)))
        environment_traceback = _environment_traceback(error)
    except BaseException:  # noqa: BLE001 - attributes of an environment's exception may raise anything
        full_traceback, environment_traceback = message, None
    return Failure(
        escape_surrogates(type(error).__name__)[:_MAX_TYPE_CHARS],
        message,
        environment_traceback,
        escape_surrogates(full_traceback[-_MAX_TRACEBACK_CHARS:]),
    )


def _environment_traceback(error: BaseException) -> str | None:
    """Return the traceback from the environment's first frame on; only its end if it is very long.

    Return None for a wrong score, because our code finds it after the environment has returned.
    """
    if error.__traceback__ is None or isinstance(error, ScoreError):
        return None
    text = user_traceback(error)
    if text is None and not isinstance(error, RolloutError):
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__.tb_next))
    return text and escape_surrogates(hide_keys(text)[-_MAX_TRACEBACK_CHARS:])
