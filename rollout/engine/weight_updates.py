"""Loads new weights into a running engine: pauses it, loads the weights, sets the version, and resumes it.

    await update_weights(
        transport,
        "http://127.0.0.1:8000",
        weights_directory=Path("/runs/one/policy"),
        version="7",
        mode="wait",
        weights_unchanged=lambda: True,
    )

The invariant: *while an engine samples, its version is that of its weights*. The old version is removed before the
weights are replaced, the new version is set afterwards, and nothing is sampled in between. If the update stops in the
middle, the engine has no valid version, and no client uses the engine until it is updated again.

Experiments showed that vLLM 0.32 needs more:

- A reload empties the network's cache of encoded images. The scheduler must forget these images, too. Otherwise, the
  next request with one of them ends the engine's process.
- The cache of *processed* images does not depend on weights. A request that reads it while it is cleared fails, so
  `clear_cache` is false. With mode `keep`, no other cache may be cleared either. Otherwise, vLLM computes the requests
  again, but no longer has the pixels of those images that came from the prefix cache.
- The prefix cache can only be emptied while no request uses a part of it. With mode `keep`, requests in flight use it.
  Its remaining entries belong to the old weights, so each request sends its required version as the cache's salt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import orjson

from rollout.engine.errors import EngineError, EngineMisconfigured, EngineMismatch, EngineNotFound, EngineTimeout
from rollout.engine.transport import EngineTransport
from rollout.records.versions import OnUpdate, loading_version

_STATE_TIMEOUT = 10.0
_CLEANUP_TIMEOUT = 5.0
_RETRY_PAUSE_SECONDS = 0.1


class NotUpdatable(EngineMisconfigured):
    """The engine does not have the routes that replace weights."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """The state of an engine's weights, as the engine reports it.

    Attributes:
        version: the version of the weights.
        paused: whether the engine is paused, so that new requests wait.
    """

    version: str
    paused: bool


async def fetch_engine_state(transport: EngineTransport, url: str) -> EngineState:
    """Ask an engine for the version of its weights, and whether it is paused; return both.

    Raises:
        NotUpdatable: the engine was started without the routes for this.
        EngineError: the engine does not answer, or answers in an unknown form.
    """
    try:
        version = orjson.loads(await transport.get(f"{url}/weight_info"))["weight_version"]
        paused = orjson.loads(await transport.get(f"{url}/is_paused"))["is_paused"]
    except EngineNotFound as error:
        raise NotUpdatable(
            f"{url} cannot load new weights, and does not report its version: {error}. Start vLLM with "
            "VLLM_SERVER_DEV_MODE=1, or with `rollout serve vllm`, which sets it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(f"{url} reports the version of its weights in an unknown form ({error!r}).") from None
    return EngineState(str(version), bool(paused))


async def fetch_engine_states(
    transport: EngineTransport, urls: Sequence[str]
) -> Mapping[str, EngineState | EngineError]:
    """Ask several engines at the same time; return for each URL the state of the engine, or its error."""
    states: dict[str, EngineState | EngineError] = {}

    async def fetch_one(url: str) -> None:
        try:
            with anyio.fail_after(_STATE_TIMEOUT):
                states[url] = await fetch_engine_state(transport, url)
        except EngineError as error:
            states[url] = error
        except TimeoutError:
            states[url] = EngineTimeout(f"{url} did not report its weights within {_STATE_TIMEOUT:g} s.")

    async with anyio.create_task_group() as group:
        for url in urls:
            group.start_soon(fetch_one, url)
    return {url: states[url] for url in urls}


async def update_weights(
    transport: EngineTransport,
    url: str,
    *,
    weights_directory: Path,
    version: str,
    mode: OnUpdate,
    weights_unchanged: Callable[[], bool],
) -> None:
    """Load the weights of a directory into an engine, which must be able to read the directory.

    The caller sets the deadline, and may repeat a failed update. `weights_unchanged` is called after the engine has
    read the weights; it returns whether the directory still contains this version.

    Raises:
        EngineError: the update failed. If the engine still has its old weights, it continues with them. If its weights
            are unknown, it stays paused, without a valid version and without requests.
    """
    try:
        await transport.post(f"{url}/pause?mode={mode}&clear_cache=false", b"")
        await _set_weight_version(transport, url, loading_version(version))
    except BaseException:
        await _post_best_effort(transport, f"{url}/resume")
        raise
    try:
        await _collective_rpc(transport, url, "reload_weights", weights_path=str(weights_directory))
        await transport.post(f"{url}/reset_encoder_cache", b"")
        await _empty_prefix_cache(transport, url, mode)
        if not weights_unchanged():
            raise EngineMismatch(f"{weights_directory} was replaced while {url} read version {version} from it.")
        await _set_weight_version(transport, url, version)
    except BaseException:
        await _post_best_effort(transport, f"{url}/pause?mode=abort&clear_cache=false")
        raise
    await transport.post(f"{url}/resume", b"")


async def _set_weight_version(transport: EngineTransport, url: str, version: str) -> None:
    await transport.post(f"{url}/update_weight_version", orjson.dumps({"new_version": version}))


async def _collective_rpc(transport: EngineTransport, url: str, method: str, **arguments: str) -> None:
    await transport.post(f"{url}/collective_rpc", orjson.dumps({"method": method, "kwargs": arguments}))


async def _empty_prefix_cache(transport: EngineTransport, url: str, mode: OnUpdate) -> None:
    """Empty the prefix cache; try again while transfers still use a part of it. With mode `keep`, try only once."""
    while True:
        emptied = _parse_success(url, await transport.post(f"{url}/reset_prefix_cache", b""))
        if emptied or mode == "keep":
            return
        await anyio.sleep(_RETRY_PAUSE_SECONDS)


def _parse_success(url: str, answer: bytes) -> bool:
    try:
        answer_json: Any = orjson.loads(answer) if answer else {}
        return bool(answer_json.get("success", True))
    except (ValueError, AttributeError) as error:
        raise EngineMismatch(f"{url} does not report whether it emptied its prefix cache ({error!r}).") from None


async def _post_best_effort(transport: EngineTransport, url: str) -> None:
    """Send a POST request to an engine after its update failed or was cancelled; ignore errors."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLEANUP_TIMEOUT):
        try:
            await transport.post(url, b"")
        except EngineError:
            return  # the caller raises the error of the update
