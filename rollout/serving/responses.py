"""Answers over HTTP: JSON, and errors in the shape of vLLM's."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from rollout.serving.protocol import RequestRefused

_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 409: "ConflictError", 500: "InternalServerError"}


def json_reply(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def _error(message: str, status: int, param: str | None) -> Response:
    error = {"message": message, "type": _ERROR_TYPES.get(status, "HTTPError"), "param": param, "code": status}
    return json_reply({"error": error}, status)


async def _refused(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return _error(error.message, error.status, error.param)


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(f"{http.method} {http.url.path}: {error.detail}", error.status_code, None)


async def _crashed(http: Request, error: Exception) -> Response:
    return _error(f"{type(error).__name__}: {error}", 500, None)


EXCEPTION_HANDLERS: Mapping[Any, ExceptionHandler] = {
    RequestRefused: _refused,
    HTTPException: _http_error,
    Exception: _crashed,
}
"""What is raised becomes an error with a message; nothing is raised through the server."""
