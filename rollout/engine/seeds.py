"""Leaves the seed out of requests to vLLM on a CPU, because such an engine ends at some requests with a seed.

vLLM 0.32 draws the tokens of a seeded request with a `torch.Generator`. If it computes a prompt in parts, it sets the
generator back after each part. A generator on a CPU cannot be set back, so the engine ends with all of its requests.
Whether a prompt is computed in parts depends on its length and on the other requests, so no seed is safe there.

What vLLM reports decides, from the fastest route to the slowest:

- `/version`: vLLM's own builds for CPUs have `+cpu` in their version. Other builds may lack it.
- `/metrics`: the block size of the prefix cache. On a CPU, vLLM chooses 128. Only models with latent attention (MLA)
  get 16 there, and their prompts are never computed in parts. On a GPU, vLLM chooses 16 for most models.
- `/server_info`: the device itself, but only with VLLM_SERVER_DEV_MODE=1.

If the device is not reported, two marks in `/metrics` count: the block size 128, if vLLM chose it, and a cache of whole
GiB, as VLLM_CPU_KVCACHE_SPACE sets it. Some engines with a GPU have such a mark, and lose the seed and nothing else.
Without the rule, an engine on a CPU would end. An engine that reports none of this in time gets the seed.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import anyio
import structlog

from rollout.engine.request import GenerateRequest
from rollout.engine.transport import EngineTransport
from rollout.engine.vllm_descriptions import cache_configs, fetch_metrics, fetch_version, fetch_vllm_config

log = structlog.get_logger()

_CPU_BLOCK_SIZE, _USUAL_GPU_BLOCK_SIZE = "128", "16"
_GIB = 1 << 30
_DEADLINE_SECONDS = 5.0


class SeedFilter:
    """Leaves the seed out of the requests of one client, where an engine must not get it.

    An engine is asked once, before its first request with a seed, and again after `forget`.
    """

    def __init__(self, transport: EngineTransport) -> None:
        self._transport = transport
        self._problems: dict[str, str | None] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._has_warned = False

    async def remove_unsafe_seed(self, url: str, request: GenerateRequest) -> GenerateRequest:
        """Return the request, without its seed if the engine at `url` must not get one."""
        if request.sampling.get("seed") is None:
            return request
        if url not in self._problems:
            await self._ask(url)
        problem = self._problems[url]
        if problem is None:
            return request
        self._warn_once(url, problem)
        return replace(request, sampling={key: value for key, value in request.sampling.items() if key != "seed"})

    def forget(self, url: str) -> None:
        """Ask this engine again before its next request with a seed, because it may have been restarted."""
        self._problems.pop(url, None)

    async def _ask(self, url: str) -> None:
        """Find out whether an engine may get a seed. If several requests need the answer, only one of them asks."""
        async with self._locks[url]:
            if url not in self._problems:
                self._problems[url] = await find_seed_problem(self._transport, url)

    def _warn_once(self, url: str, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "requests are sent without their seed, which can end vLLM on a CPU",
                engine=url,
                because=problem,
                fix="leave out engine.sampling.seed and the seed of chat(sampling=…), or run vLLM on a GPU. If this "
                "engine has a GPU, start it with VLLM_SERVER_DEV_MODE=1, so that it reports its device.",
            )


async def find_seed_problem(transport: EngineTransport, url: str) -> str | None:
    """Return why an engine must not get a seed; None if it may. What it does not report in time does not count."""
    marks: list[str] = []
    with anyio.move_on_after(_DEADLINE_SECONDS):
        version = await fetch_version(transport, url)
        if version is not None and "cpu" in version.partition("+")[2]:
            return f"/version reports {version}"
        caches = cache_configs(await fetch_metrics(transport, url))
        marks = [mark for cache in caches if (mark := _cpu_mark(cache)) is not None]
        if caches and not marks and all(cache.get("block_size") == _USUAL_GPU_BLOCK_SIZE for cache in caches):
            return None
        match await fetch_vllm_config(transport, url):
            case {"device_config": {"device": "cpu"}}:
                return "/server_info reports the device cpu"
            case {"device_config": {"device": str()}}:
                return None
    return marks[0] if marks else None


def _cpu_mark(cache: Mapping[str, str]) -> str | None:
    """Return what in the configuration of a prefix cache is usual on a CPU; None if there is nothing."""
    block_size, memory = cache.get("block_size"), cache.get("kv_cache_memory_bytes", "")
    if block_size == _CPU_BLOCK_SIZE and cache.get("user_specified_block_size") != "True":
        return f"/metrics reports block_size={block_size}, which vLLM chooses on a CPU"
    if memory.isdecimal() and int(memory) and int(memory) % _GIB == 0:
        return f"/metrics reports kv_cache_memory_bytes={memory}, as VLLM_CPU_KVCACHE_SPACE sets it"
    return None
