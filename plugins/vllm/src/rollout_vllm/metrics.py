"""The metrics that the plugin adds to vLLM's on `/metrics`."""

from prometheus_client import Counter, Gauge  # type: ignore[import-not-found]


class PluginMetrics:
    """The metrics of the plugin. There is one instance in a process, because the registry accepts a name only once.

    Attributes:
        images: counts images by their origin.
        refused: counts requests that were answered 400.
        failed: counts requests that were answered 500.
        cache_bytes: the size of the cache of processed images.
    """

    def __init__(self) -> None:
        images = "Images of requests: kept (cached), joined (made for another request), made, or stock (tensors)."
        self.images = Counter("mmraw_images", images, ["origin"])
        self.refused = Counter("mmraw_requests_refused", "Requests that were answered 400 because of an image.")
        self.failed = Counter("mmraw_requests_failed", "Requests that were answered 500 because the plugin failed.")
        self.cache_bytes = Gauge("mmraw_cache_bytes", "Bytes of cached images.", multiprocess_mode="livesum")
