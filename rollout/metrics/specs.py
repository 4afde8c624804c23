"""Defines what a metric is: its name, type, labels and meaning, and how it is created or built."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry


class MetricType(StrEnum):
    """The types of Prometheus metrics that we use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The definition of one metric.

    Attributes:
        name: the name in Prometheus, including the `_total` of a counter.
        metric_type: the type of the metric.
        label_names: the names of the metric's labels.
        description: what the metric measures.
        buckets: the upper bounds of the buckets, if the metric is a histogram.
    """

    name: str
    metric_type: MetricType
    label_names: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def base_name(self) -> str:
        """The name in the package prometheus-client, which does not have the `_total` of a counter."""
        return self.name.removesuffix("_total")

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Create and return this counter in a registry."""
        return Counter(self.base_name, self.description, self.label_names, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """Create and return this gauge in a registry."""
        return Gauge(self.base_name, self.description, self.label_names, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Create and return this histogram in a registry."""
        return Histogram(self.base_name, self.description, self.label_names, buckets=self.buckets, registry=registry)

    def build_metric(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """Return a counter or a gauge with these values; each key contains the values of the labels."""
        family_class = CounterMetricFamily if self.metric_type is MetricType.COUNTER else GaugeMetricFamily
        metric: Metric = family_class(self.base_name, self.description, labels=self.label_names)
        for label_values, value in values.items():
            metric.add_metric(label_values, value)  # type: ignore[attr-defined]
        return metric

    def build_histogram(self, value_counts: Mapping[int, int], *label_values: str) -> Metric:
        """Return a histogram; `value_counts` says how many times each value occurred."""
        metric = HistogramMetricFamily(self.base_name, self.description, labels=self.label_names)
        upper_bounds = (*self.buckets, float("inf"))
        cumulative_buckets = [
            (
                _format_bound(upper_bound),
                float(sum(count for value, count in value_counts.items() if value <= upper_bound)),
            )
            for upper_bound in upper_bounds
        ]
        metric.add_metric(label_values, cumulative_buckets, sum(value * n for value, n in value_counts.items()))
        return metric


def _format_bound(upper_bound: float) -> str:
    """Return the upper bound of a bucket in the form of Prometheus."""
    return "+Inf" if upper_bound == float("inf") else str(float(upper_bound))
