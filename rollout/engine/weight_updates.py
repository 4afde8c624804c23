"""New weights for a running engine: paused, reloaded, named, resumed.

    await update(http, "http://127.0.0.1:8000", weights=Path("/runs/one/policy"), version="7", mode="wait")

The invariant: *an engine never samples under the name of weights that it does not have*. The name of the old version
is taken away before they are replaced, that of the new one is given afterwards, and nothing is sampled in between.
Whatever dies in the middle leaves an engine that goes by no version, and that nobody uses until it was updated again.

What vLLM 0.32 asks for beyond that, found by trying:

- A reload empties the network's cache of encoded images. The scheduler must forget them too, or the next request that
  shows one of them again ends the process.
- The cache of *processed* images does not depend on weights, and clearing it under way fails those requests that are
  just looking into it, hence `clear_cache=false`. A pause that keeps requests must not clear anything else either: it
  would compute them anew, and vLLM no longer has their pixels where the prefix cache had stood in for them.
- The prefix cache can only be emptied while no request holds a part of it. With `keep` those in flight do; what stays
  is of the old weights, so requests name the version that they were made for as the salt of that cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import orjson

from rollout.engine.errors import EngineError, EngineMisconfigured, EngineMismatch, EngineTimeout
from rollout.engine.http import EngineHttp
from rollout.records.versions import OnUpdate, loading_version

_STATE_TIMEOUT = 10.0
_CLEANUP_TIMEOUT = 5.0
_RETRY_PAUSE_SECONDS = 0.1


class NotUpdatable(EngineMisconfigured):
    """An engine without the routes by which weights are replaced."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine says of its weights."""

    version: str
    paused: bool


async def fetch_engine_state(http: EngineHttp, url: str) -> EngineState:
    """Ask an engine.

    Raises:
        NotUpdatable: it was started without these routes.
        EngineError: it does not answer.
    """
    try:
        version = orjson.loads(await http.get(f"{url}/weight_info"))["weight_version"]
        paused = orjson.loads(await http.get(f"{url}/is_paused"))["is_paused"]
    except EngineMisconfigured as error:
        raise NotUpdatable(
            f"{url} cannot be given new weights, nor tell which it has: {error}. Start vLLM with "
            "VLLM_SERVER_DEV_MODE=1, or with `rollout serve vllm`, which does."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(
            f"{url} tells the version of its weights in a form that is not known ({error!r})."
        ) from None
    return EngineState(str(version), bool(paused))


async def fetch_engine_states(http: EngineHttp, urls: Sequence[str]) -> Mapping[str, EngineState | EngineError]:
    """What each of several engines says of its weights, or why it does not."""
    states: dict[str, EngineState | EngineError] = {}

    async def fetch_one(url: str) -> None:
        try:
            with anyio.fail_after(_STATE_TIMEOUT):
                states[url] = await fetch_engine_state(http, url)
        except EngineError as error:
            states[url] = error
        except TimeoutError:
            states[url] = EngineTimeout(f"{url} did not tell its weights within {_STATE_TIMEOUT:g} s.")

    async with anyio.create_task_group() as group:
        for url in urls:
            group.start_soon(fetch_one, url)
    return {url: states[url] for url in urls}


async def update_weights(
    http: EngineHttp,
    url: str,
    *,
    weights_directory: Path,
    version: str,
    mode: OnUpdate,
    weights_unchanged: Callable[[], bool],
) -> None:
    """Let an engine go on with the weights in a directory that it can read. May be repeated; the caller has a deadline.

    `weights_unchanged` is asked once the engine has read them: whether they still are those of this version.

    Raises:
        EngineError: it failed. An engine that still has its old weights goes on with them. One whose weights are in an
            unknown state stays paused, without a version's name and without requests.
    """
    try:
        await http.post(f"{url}/pause?mode={mode}&clear_cache=false", b"")
        await _set_weight_version(http, url, loading_version(version))
    except BaseException:
        await _post_best_effort(http, f"{url}/resume")
        raise
    try:
        await _collective_rpc(http, url, "reload_weights", weights_path=str(weights_directory))
        await http.post(f"{url}/reset_encoder_cache", b"")
        await _empty_prefix_cache(http, url, mode)
        if not weights_unchanged():
            raise EngineMismatch(f"{weights_directory} was replaced while {url} read version {version} from it.")
        await _set_weight_version(http, url, version)
    except BaseException:
        await _post_best_effort(http, f"{url}/pause?mode=abort&clear_cache=false")
        raise
    await http.post(f"{url}/resume", b"")


async def _set_weight_version(http: EngineHttp, url: str, version: str) -> None:
    await http.post(f"{url}/update_weight_version", orjson.dumps({"new_version": version}))


async def _collective_rpc(http: EngineHttp, url: str, method: str, **arguments: str) -> None:
    await http.post(f"{url}/collective_rpc", orjson.dumps({"method": method, "kwargs": arguments}))


async def _empty_prefix_cache(http: EngineHttp, url: str, mode: OnUpdate) -> None:
    """Where nothing is in flight the cache can be emptied, but not always at once: transfers may hold parts of it."""
    while True:
        emptied = _parse_success(url, await http.post(f"{url}/reset_prefix_cache", b""))
        if emptied or mode == "keep":
            return
        await anyio.sleep(_RETRY_PAUSE_SECONDS)


def _parse_success(url: str, answer: bytes) -> bool:
    try:
        answer_json: Any = orjson.loads(answer) if answer else {}
        return bool(answer_json.get("success", True))
    except (ValueError, AttributeError) as error:
        raise EngineMismatch(f"{url} does not tell whether it emptied its prefix cache ({error!r}).") from None


async def _post_best_effort(http: EngineHttp, url: str) -> None:
    """What can still be done for an engine once its update has failed, also where that was cancelled."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLEANUP_TIMEOUT):
        try:
            await http.post(url, b"")
        except EngineError:
            return  # it is the failure itself that is told
