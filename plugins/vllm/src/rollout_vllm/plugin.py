"""The entry point of the plugin.

VLLM_PLUGINS=mmraw vllm serve MODEL --enable-scale-out --allowed-local-media-path DIRECTORY
"""

from importlib.metadata import version
from typing import Any

from vllm.logger import init_logger

from .discovery import discover_image_config
from .handler import ImageRefHandler
from .image_config import ServerImageConfig
from .metrics import PluginMetrics
from .resolver import ProcessedItem, Resolver
from .single_flight import AsyncSingleFlightCache

logger = init_logger("vllm.mmraw")


class MMRawPlugin:
    """The endpoint plugin that vLLM loads: it adds a route, and replaces the handler of generate requests."""

    name = "mmraw"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route `/mmraw/version`, which says whether this server resolves references, and for which family."""

        @app.get("/mmraw/version")  # type: ignore[untyped-decorator]
        async def mmraw_version() -> dict[str, Any]:
            image_config: ServerImageConfig | None = app.state.mmraw_image_config
            return {
                "version": version("rollout-vllm"),
                "refs": ["v2", "v3"],
                "modality": image_config and image_config.modality,
                "family": image_config and image_config.geometry.family,
                "fingerprint": image_config and image_config.geometry.fingerprint,
            }

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Replace vLLM's handler by the plugin's, if the model takes images of a known family."""
        vllm_handler = state.serving_tokens
        discovered = await discover_image_config(vllm_handler.online_renderer.renderer)
        if isinstance(discovered, str):
            state.mmraw_image_config = None
            logger.warning("This server does not resolve image references: %s.", discovered)
            return
        image_config, processor = discovered
        metrics = PluginMetrics()
        # This setting is the size of both caches of processed images, vLLM's and the plugin's; 0 turns both off.
        cache_gib = vllm_handler.model_config.get_multimodal_config().mm_processor_cache_gb
        cache: AsyncSingleFlightCache[ProcessedItem] = AsyncSingleFlightCache(int(cache_gib * 2**30))

        def count_image(origin: str) -> None:
            metrics.images.labels(origin).inc()
            metrics.cache_bytes.set(cache.nbytes)

        state.serving_tokens = ImageRefHandler(
            vllm_handler, image_config, Resolver(image_config, processor, cache, count_image), metrics
        )
        state.mmraw_image_config = image_config
        logger.info(
            "This server resolves image references: family %s, fingerprint %s, files below %s, cache of %.1f GiB.",
            image_config.geometry.family,
            image_config.geometry.fingerprint,
            image_config.files.directory if image_config.files else "no directory",
            cache_gib,
        )
