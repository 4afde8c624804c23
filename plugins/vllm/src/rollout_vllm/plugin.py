"""The entry point: `VLLM_PLUGINS=mmraw vllm serve MODEL --enable-scale-out --allowed-local-media-path DIRECTORY`."""

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
    """An endpoint plugin as vLLM defines it."""

    name = "mmraw"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route that says whether this server resolves references, and for which images."""

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
        """Replace vLLM's handler by ours, if the model takes images of a family that we know."""
        vllm_handler = state.serving_tokens
        discovered = await discover_image_config(vllm_handler.online_renderer.renderer)
        if isinstance(discovered, str):
            state.mmraw_image_config = None
            logger.warning("References to images are not resolved here: %s.", discovered)
            return
        image_config, processor = discovered
        metrics = PluginMetrics()
        # The same setting sizes vLLM's own cache of processed images and ours; 0 keeps nothing.
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
            "References to images are resolved: %s, fingerprint %s, files below %s, %.1f GiB kept.",
            image_config.geometry.family,
            image_config.geometry.fingerprint,
            image_config.files.directory if image_config.files else "no directory",
            cache_gib,
        )
