"""The control routes of an engine, like vLLM's with VLLM_SERVER_DEV_MODE=1: pause, reload, version, resume.

They are stricter than vLLM's: the weights and their version change only while the engine is paused. vLLM allows a
change at any time. It then crashes, or labels tokens with the wrong version.
"""

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rollout.serving.engine import Engine
from rollout.serving.gate import PAUSE_MODES, PauseGate
from rollout.serving.protocol import RequestRefused, StrictModel, parse_body
from rollout.serving.responses import json_response


class _NewVersion(StrictModel):
    new_version: str


class _ReloadArguments(StrictModel):
    weights_path: str | None = None


class _RpcCall(StrictModel):
    method: str
    kwargs: _ReloadArguments = _ReloadArguments()


class ControlRoutes:
    """The routes that a trainer uses to load new weights."""

    def __init__(self, engine: Engine, gate: PauseGate) -> None:
        self._engine = engine
        self._gate = gate

    def routes(self) -> list[Route]:
        """Return the control routes."""
        return [
            Route("/pause", self._pause, methods=["POST"]),
            Route("/resume", self._resume, methods=["POST"]),
            Route("/is_paused", self._is_paused),
            Route("/collective_rpc", self._collective_rpc, methods=["POST"]),
            Route("/update_weight_version", self._update_weight_version, methods=["POST"]),
            Route("/weight_info", self._weight_info),
            # These routes do nothing, because our engines keep no cache after a reload.
            *(
                Route(f"/reset_{cache_name}_cache", self._reset_cache, methods=["POST"])
                for cache_name in ("prefix", "mm", "encoder")
            ),
        ]

    async def _pause(self, http: Request) -> Response:
        requested_mode = http.query_params.get("mode", "abort")
        mode = next((known_mode for known_mode in PAUSE_MODES if known_mode == requested_mode), None)
        # In vLLM, clear_cache says whether a pause empties the caches. Here it has no effect.
        clear_cache = http.query_params.get("clear_cache", "true")
        if mode is None or clear_cache not in ("true", "false") or set(http.query_params) - {"mode", "clear_cache"}:
            raise RequestRefused(
                f"/pause takes ?mode={'|'.join(PAUSE_MODES)} and &clear_cache=true|false, not ?{http.query_params}.",
                param="mode",
            )
        await self._gate.pause(mode)
        return json_response({"status": "paused"})

    async def _resume(self, http: Request) -> Response:
        await self._gate.resume()
        return json_response({"status": "resumed"})

    async def _is_paused(self, http: Request) -> Response:
        return json_response({"is_paused": self._gate.paused})

    async def _collective_rpc(self, http: Request) -> Response:
        call = parse_body(_RpcCall, await http.body())
        if call.method != "reload_weights":
            raise RequestRefused(f"method is {call.method}; this engine supports only reload_weights.", param="method")
        weights_directory = None if call.kwargs.weights_path is None else Path(call.kwargs.weights_path)
        async with self._gate.changing_weights():
            await asyncio.to_thread(self._engine.reload, weights_directory)
        return json_response({"results": [None]})

    async def _update_weight_version(self, http: Request) -> Response:
        version = parse_body(_NewVersion, await http.body()).new_version
        self._gate.set_version(version)
        return json_response({"success": True, "new_version": version})

    async def _weight_info(self, http: Request) -> Response:
        return json_response({"weight_version": self._gate.version})

    async def _reset_cache(self, http: Request) -> Response:
        return Response()
