"""Asks for an API key on every route of an engine except `/health` and `/metrics`, also in vLLM.

vLLM 0.32 asks for its key on `/v1`, `/v2`, `/inference` and `/cohere` only. On other routes, a client without a key
could pause the engine, replace its weights, or get answers at `/invocations`. So `rollout serve vllm` passes this class
to vLLM with `--middleware`, and puts its directory on PYTHONPATH.

vLLM's environment has no other file of ours, so this module imports only the standard library.
"""

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_OPEN_PATHS = frozenset(("/health", "/metrics", "/metrics/"))
"""A scheduler and Prometheus read these paths without a key."""
_BODY = json.dumps(
    {
        "error": {
            "message": "this engine needs its API key with every request: send the header Authorization: Bearer KEY",
            "type": "AuthenticationError",
            "param": None,
            "code": 401,
        }
    }
).encode()


class RequireKey:
    """An ASGI application that passes a request on to the application inside it only if the request has the API key.

    If `key` is None, the key comes from the environment variable VLLM_API_KEY.
    """

    def __init__(self, app: _App, key: str | None = None) -> None:
        key = os.environ.get("VLLM_API_KEY", "").strip() if key is None else key
        if not key:
            raise ValueError("VLLM_API_KEY is empty; set it to the API key")
        self._app = app
        self._expected = f"bearer {key}".encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request without the key with status 401, and pass all other requests on."""
        if scope["type"] not in ("http", "websocket") or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            # The body of the request was not read, so the connection cannot be used again.
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers += [(b"content-length", str(len(_BODY)).encode()), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})

    def _is_open(self, scope: _Message) -> bool:
        path: str = scope["path"]
        return scope["type"] == "http" and path.removeprefix(scope.get("root_path", "")) in _OPEN_PATHS

    def _has_key(self, scope: _Message) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + key.strip(), self._expected)
