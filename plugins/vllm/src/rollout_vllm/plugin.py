"""The entry point: `VLLM_PLUGINS=mmraw vllm serve MODEL --enable-scale-out --allowed-local-media-path DIRECTORY`."""

from importlib.metadata import version
from typing import Any

from vllm.logger import init_logger

from .discovery import discover
from .handler import ServingRawImages
from .image_config import ServerFacts
from .metrics import Metrics
from .resolver import Material, Resolver
from .single_flight import FlightCache

logger = init_logger("vllm.mmraw")


class MMRawPlugin:
    """An endpoint plugin as vLLM defines it."""

    name = "mmraw"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route by which a client learns whether references are resolved here, and which."""

        @app.get("/mmraw/version")  # type: ignore[untyped-decorator]
        async def mmraw_version() -> dict[str, Any]:
            facts: ServerFacts | None = app.state.mmraw_facts
            return {
                "version": version("rollout-vllm"),
                "refs": ["v2", "v3"],
                "modality": facts and facts.modality,
                "family": facts and facts.geometry.family,
                "fingerprint": facts and facts.geometry.fingerprint,
            }

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Stand before vLLM's own handler, if this server takes images that we understand."""
        stock = state.serving_tokens
        found = await discover(stock.online_renderer.renderer)
        if isinstance(found, str):
            state.mmraw_facts = None
            logger.warning("References to images are not resolved here: %s.", found)
            return
        facts, processor = found
        metrics = Metrics()
        # One knob for both: how much of processed images vLLM keeps, and 0 where nothing is to be kept.
        keep = stock.model_config.get_multimodal_config().mm_processor_cache_gb
        cache: FlightCache[Material] = FlightCache(int(keep * 2**30))

        def count(origin: str) -> None:
            metrics.images.labels(origin).inc()
            metrics.cache_bytes.set(cache.nbytes)

        state.serving_tokens = ServingRawImages(stock, facts, Resolver(facts, processor, cache, count), metrics)
        state.mmraw_facts = facts
        logger.info(
            "References to images are resolved: %s, fingerprint %s, files below %s, %.1f GiB kept.",
            facts.geometry.family,
            facts.geometry.fingerprint,
            facts.files.directory if facts.files else "no directory",
            keep,
        )
