"""Counters beside vLLM's own on `/metrics`."""

from prometheus_client import Counter, Gauge  # type: ignore[import-not-found]


class PluginMetrics:
    """What the plugin did. Only one instance per process, because the registry takes a name once."""

    def __init__(self) -> None:
        images = "Images of requests: kept, joined (in another request's work), made or stock (tensors)."
        self.images = Counter("mmraw_images", images, ["origin"])
        self.refused = Counter("mmraw_requests_refused", "Requests that were answered 400 for their images.")
        self.failed = Counter("mmraw_requests_failed", "Requests that were answered 500 because of our own fault.")
        self.cache_bytes = Gauge("mmraw_cache_bytes", "Serialised images that are kept.", multiprocess_mode="livesum")
