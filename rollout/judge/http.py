"""Sends a question to a judge over HTTP, and reads the text of the answer."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import orjson

from rollout.engine.httpx_transport import system_tls_settings
from rollout.engine.transport import KEEP_ALIVE_SECONDS
from rollout.errors import error_text
from rollout.judge.address import JudgeAddress
from rollout.judge.errors import JudgeRefused, TryFailed

MAX_ANSWER_BYTES = 4 << 20
_RETRIED_STATUSES = (408, 429)
_WAITING_STATUSES = (429, 503)
_CUT = ("length", "max_tokens", "model_length")
_NOT_ENDED = ("content_filter", "tool_calls", "function_call", "abort", "error")
"""The finish reasons of an answer that cannot be used."""
_FIX_BY_STATUS = {
    400: " (check that the judge knows all sampling parameters, and that the question fits into its context)",
    401: " (check that api_key is the judge's key)",
    403: " (check that this api_key may use this model)",
    404: " (check that the judge serves this model, and that base_url ends in /v1 if the judge needs it)",
}


class JudgeHttp:
    """Holds the connections to one judge; use it in one event loop."""

    def __init__(self, address: JudgeAddress, *, max_connections: int) -> None:
        self._address = address
        headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        if address.authorization is not None:
            headers["authorization"] = address.authorization
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=None,  # noqa: S113 - the caller limits the time of the whole try
            trust_env=False,
            follow_redirects=False,
            verify=system_tls_settings(),
            limits=httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=max_connections,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ask(self, body: bytes, *, takes_cut_answer: bool) -> str:
        """Send a question, and return the text of the answer. The caller sets the deadline.

        An answer that was cut off is returned only if `takes_cut_answer` is true.

        Raises:
            TryFailed: there was no connection or no complete answer, or the judge cannot answer now.
            JudgeRefused: the judge refused this question (4xx), or redirected it (3xx).
        """
        try:
            async with self._client.stream("POST", self._address.url, content=body) as response:
                content = await self._read(response)
        except httpx.RemoteProtocolError:
            # The error and its traceback repeat what the judge sent, and this may contain a key.
            raise TryFailed(
                "the connection was closed before the whole answer came, or the answer is not HTTP"
            ) from None
        except (httpx.HTTPError, httpx.StreamError, ValueError) as error:
            # ValueError: the host name is not valid.
            reason = self._address.excerpt(f"{type(error).__name__}: {error_text(error)}")
            raise TryFailed(
                f"{reason.rstrip(': .')}. Check that the judge is running, and that base_url is right."
            ) from None
        status = response.status_code
        if 200 <= status < 300:
            if content is None:
                raise TryFailed(f"the answer is compressed, or has more than {MAX_ANSWER_BYTES:,} bytes")
            return self._read_answer(content, takes_cut_answer=takes_cut_answer)
        if status < 400:
            raise JudgeRefused(self._describe_redirect(response))
        reason = self._error_message(content)
        if status >= 500 or status in _RETRIED_STATUSES:
            asked_pause = response.headers.get("retry-after", "") if status in _WAITING_STATUSES else ""
            raise TryFailed(f"the judge answered with status {status}: {reason}", _parse_retry_after(asked_pause))
        raise JudgeRefused(
            f"the judge at {self._address.base_url} answered with status {status}: {reason}"
            f"{_FIX_BY_STATUS.get(status, '')}"
        )

    async def _read(self, response: httpx.Response) -> bytes | None:
        """Return the body of an answer; None if it is compressed, or has more than `MAX_ANSWER_BYTES`."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            return None
        chunks, n_bytes = [], 0
        async for chunk in response.aiter_raw():
            chunks.append(chunk)
            n_bytes += len(chunk)
            if n_bytes > MAX_ANSWER_BYTES:
                return None
        return b"".join(chunks)

    def _read_answer(self, content: bytes, *, takes_cut_answer: bool) -> str:
        try:
            choice = orjson.loads(content)["choices"][0]
            text, finish_reason = _join_parts(choice["message"]["content"]), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise TryFailed(f"the answer is not a chat completion: {self._error_message(content)}") from None
        if finish_reason in _CUT and not takes_cut_answer:
            raise TryFailed(
                f"the answer was cut off (finish_reason: {finish_reason}); set max_tokens=… if such an answer is useful"
            )
        if finish_reason in _NOT_ENDED:
            raise TryFailed(f"the answer ended with finish_reason {finish_reason!r}, not with 'stop'")
        if not isinstance(text, str) or not text.strip():
            raise TryFailed(f"the answer has no text (finish_reason: {self._address.excerpt(str(finish_reason))})")
        return text

    def _error_message(self, content: bytes | None) -> str:
        """Return the error message in an answer, or the start of the answer if there is no such message."""
        if content is None:
            return "(an answer that is compressed or too long)"
        try:
            message = str(orjson.loads(content)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            message = content.decode(errors="replace")
        return self._address.excerpt(message) or "(no reason given)"

    def _describe_redirect(self, response: httpx.Response) -> str:
        location = self._address.location_excerpt(response.headers.get("location", ""))
        return (
            f"the judge at {self._address.base_url} answered with status {response.status_code}: it "
            f"redirects to {location or 'an unknown address'}, and redirects are not followed. Give the right address "
            "as base_url, without /chat/completions."
        )


def _join_parts(content: object) -> object:
    """Return a message's text. If the content is a list of parts, join its texts, without parts such as reasoning."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _parse_retry_after(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 if it is empty or not valid."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text).replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
