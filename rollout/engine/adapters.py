"""Finds out whether LoRA adapters can be loaded into a running vLLM, without changing it.

    support = await fetch_adapter_support(transport, "http://127.0.0.1:8000")
    print(support.can_load, support.reason)

vLLM loads an adapter at run time only if it was started with a variable, which adds the route, and with a flag, which
makes room for adapters. With the variable alone, the route is there, but every adapter is refused.
"""

from dataclasses import dataclass

from rollout.engine.error_answers import require_success
from rollout.engine.errors import EngineMismatch
from rollout.engine.transport import EngineTransport
from rollout.engine.vllm_descriptions import (
    OWN_VERSION_PREFIX,
    cache_configs,
    fetch_metrics,
    fetch_version,
    fetch_vllm_config,
)

LOAD_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
LORA_FLAG = "--enable-lora"

_LOAD_ROUTE = "/v1/load_lora_adapter"
_LORA_METRIC = "vllm:lora_requests_info"
_BODY_REFUSED_STATUSES = (400, 422)
_NO_ROUTE_STATUSES = (404, 405)


@dataclass(frozen=True, slots=True)
class AdapterSupport:
    """Whether adapters can be loaded into a running engine.

    Attributes:
        can_load: whether they can; None: this is not known.
        missing: the flags and variables that vLLM was started without, as far as this is known.
        reason: why, as a sentence.
    """

    can_load: bool | None
    missing: tuple[str, ...]
    reason: str


async def fetch_adapter_support(transport: EngineTransport, url: str) -> AdapterSupport:
    """Ask an engine whether adapters can be loaded into it. The caller sets the deadline.

    Raises:
        EngineMismatch: the engine accepts an adapter without a name and a path, which vLLM does not.
        EngineError: the engine does not answer, or refuses the key.
    """
    has_route = await _has_load_route(transport, url)
    lora_enabled = await _is_lora_enabled(transport, url, has_route=has_route)
    if not has_route:
        version = await fetch_version(transport, url)
        if version is None:
            return AdapterSupport(
                None, (), f"POST {_LOAD_ROUTE} is not there, and /version does not say that this is vLLM."
            )
        if version.startswith(OWN_VERSION_PREFIX):
            return AdapterSupport(False, (), f"this engine is {version}, and only vLLM loads adapters.")
    missing = (*(() if has_route else (LOAD_VARIABLE,)), *((LORA_FLAG,) if lora_enabled is False else ()))
    if missing:
        return AdapterSupport(False, missing, f"vLLM was started without {' and without '.join(missing)}.")
    if lora_enabled is None:
        return AdapterSupport(
            None,
            (),
            f"vLLM was started with {LOAD_VARIABLE}, but neither /metrics nor /server_info says whether also with "
            f"{LORA_FLAG}. With VLLM_SERVER_DEV_MODE=1, /server_info says it.",
        )
    return AdapterSupport(True, (), f"vLLM was started with {LOAD_VARIABLE} and {LORA_FLAG}.")


async def _has_load_route(transport: EngineTransport, url: str) -> bool:
    """Whether the engine has the route. An adapter without a name and a path is always refused, so nothing changes."""
    route = f"{url}{_LOAD_ROUTE}"
    status, content = await transport.send("POST", route, b"{}")
    if status in _NO_ROUTE_STATUSES:
        return False
    if status not in _BODY_REFUSED_STATUSES:
        require_success(route, status, content)
        raise EngineMismatch(f"{route} accepted an adapter without a name and a path; is this a vLLM server?")
    return True


async def _is_lora_enabled(transport: EngineTransport, url: str, *, has_route: bool) -> bool | None:
    metrics = await fetch_metrics(transport, url)
    if _LORA_METRIC in metrics:
        return True
    config = await fetch_vllm_config(transport, url)
    if "lora_config" in config:
        return config["lora_config"] is not None
    # With several API servers, a metric without a value is not reported. vLLM then refuses to start with the route.
    return False if has_route and cache_configs(metrics) else None
