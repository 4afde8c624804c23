"""The faults of a play: what a program gets instead of an answer, and the errors in the form of each dialect."""

from enum import StrEnum

import orjson

from rollout.gateway.addresses import KEY_PATH
from rollout.gateway.dialects.base import Dialect, RequestRefused
from rollout.gateway.dialects.chat import ChatDialect
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.gateway.dialects.responses import ResponsesDialect

DIALECTS: dict[str, type[ChatDialect] | type[ResponsesDialect] | type[MessagesDialect]] = {
    "/v1/chat/completions": ChatDialect,
    "/v1/responses": ResponsesDialect,
    "/v1/messages": MessagesDialect,
}
"""The dialect of each path at which a program asks for an answer."""


class Fault(StrEnum):
    """What happens to a request that repeats an answer, instead of its answer.

    Attributes:
        REFUSED: it gets status 400, and so does every later request.
        OVERFLOW: it gets the error of a provider whose context is full, and so does every later request with tools. A
            request without tools, such as one for a summary, is answered.
        DROPPED: its connection is cut before the answer; later requests are answered.
        CUT: its connection is cut in the middle of the answer; later requests are answered.
    """

    REFUSED = "refused"
    OVERFLOW = "overflow"
    DROPPED = "dropped"
    CUT = "cut"


def split_path(path: str) -> str:
    """Return the path of a request without a key in it."""
    if not path.startswith(KEY_PATH):
        return path
    _, slash, rest = path.removeprefix(KEY_PATH).partition("/")
    return slash + rest or "/"


def error_body(fault: Fault, path: str) -> bytes:
    """Return the body of the error that a request to a path gets; its status is 400."""
    dialect: Dialect = DIALECTS[path]()
    if fault is Fault.REFUSED:
        return dialect.write_refusal(RequestRefused("The request is invalid.", parameter="messages"))
    if isinstance(dialect, MessagesDialect):
        return dialect.write_refusal(RequestRefused("prompt is too long: 210000 tokens > 200000 maximum"))
    message = (
        "This model's maximum context length is 131072 tokens. However, your messages resulted in 140000 tokens. "
        "Please reduce the length of the messages."
    )
    error = {"message": message, "type": "invalid_request_error", "param": "messages"}
    return orjson.dumps({"error": {**error, "code": "context_length_exceeded"}})
