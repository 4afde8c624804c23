"""Asks vLLM what it is: its version, its metrics and its configuration.

Other engines do not have all of these routes, and a proxy may close some, with any status. A request without a
successful answer is then no error, but says nothing. Each function lets its caller set the deadline.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from rollout.engine.errors import EngineError
from rollout.engine.transport import EngineTransport

OWN_VERSION_PREFIX = "rollout-"
"""How the version of our own engines begins, where vLLM has a number."""

_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


async def fetch_version(transport: EngineTransport, url: str) -> str | None:
    """Return the version that an engine reports at `/version`; None if it reports none."""
    version = _parse_object(await _fetch_if_offered(transport, f"{url}/version")).get("version")
    return version if isinstance(version, str) else None


async def fetch_metrics(transport: EngineTransport, url: str) -> str:
    """Return the text of an engine's `/metrics`; an empty text if it offers none."""
    return (await _fetch_if_offered(transport, f"{url}/metrics") or b"").decode(errors="replace")


async def fetch_vllm_config(transport: EngineTransport, url: str) -> Mapping[str, Any]:
    """Return the configuration that vLLM reports with VLLM_SERVER_DEV_MODE=1; empty if it reports none.

    The first answer of a server can take seconds, because vLLM describes its whole machine.
    """
    info = _parse_object(await _fetch_if_offered(transport, f"{url}/server_info?config_format=json"))
    config = info.get("vllm_config")
    return config if isinstance(config, dict) else {}


def cache_configs(metrics: str) -> list[Mapping[str, str]]:
    """Return the configuration of each prefix cache, as vLLM's metrics report it."""
    return [dict(_LABEL.findall(labels)) for labels in _CACHE_CONFIG.findall(metrics)]


async def _fetch_if_offered(transport: EngineTransport, url: str) -> bytes | None:
    try:
        return await transport.get(url)
    except EngineError:
        return None


def _parse_object(body: bytes | None) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(body or b"")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
