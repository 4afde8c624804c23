"""The metrics that the plugin adds to vLLM's metrics on `/metrics`."""

from prometheus_client import Counter, Gauge  # type: ignore[import-not-found]


class PluginMetrics:
    """The metrics of the plugin. A process has only one instance, because the registry accepts each name only once.

    Attributes:
        images: the number of images, by their origin.
        refused: the number of requests that were answered with status 400.
        failed: the number of requests that were answered with status 500.
        cache_bytes: the size of the cache of processed images, in bytes.
    """

    def __init__(self) -> None:
        images = (
            "Images in requests: kept (cached), joined (another request made it), made, or stock (sent as tensors)."
        )
        self.images = Counter("mmraw_images", images, ["origin"])
        self.refused = Counter("mmraw_requests_refused", "Requests answered with status 400 because of an image.")
        self.failed = Counter("mmraw_requests_failed", "Requests answered with status 500 because the plugin failed.")
        self.cache_bytes = Gauge(
            "mmraw_cache_bytes", "Size of the cache of processed images in bytes.", multiprocess_mode="livesum"
        )
