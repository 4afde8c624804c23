"""Makes HTTP answers: values as JSON, and errors in the same form as vLLM."""

from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from rollout.serving.protocol import RequestRefused

log = structlog.get_logger()

_ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    408: "RequestTimeout",
    409: "ConflictError",
    413: "RequestTooLarge",
    500: "InternalServerError",
}


def json_response(value: Any, status: int = 200) -> Response:
    """Return an HTTP answer that contains a value as JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def _error_response(message: str, status: int, param: str | None) -> Response:
    error = {"message": message, "type": _ERROR_TYPES.get(status, "HTTPError"), "param": param, "code": status}
    response = json_response({"error": error}, status)
    if status == 408:  # the rest of the body was not read, so the connection cannot be used again
        response.headers["connection"] = "close"
    return response


async def _handle_request_refused(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return _error_response(error.message, error.status, error.param)


async def _handle_http_exception(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error_response(f"{http.method} {http.url.path}: {error.detail}", error.status_code, None)


async def _handle_unexpected_error(http: Request, error: Exception) -> Response:
    log.error("a request failed", path=http.url.path, exc_info=error)
    return _error_response(f"{type(error).__name__}: {error}", 500, None)


EXCEPTION_HANDLERS: Mapping[Any, ExceptionHandler] = {
    RequestRefused: _handle_request_refused,
    HTTPException: _handle_http_exception,
    Exception: _handle_unexpected_error,
}
"""Makes an answer from each exception; an exception that is not expected is also logged, with its traceback."""
