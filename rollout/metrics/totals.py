"""Samples of several workers become one metric: each worker sends what changed, and its supervisor adds it up.

The counters of a dead worker still count; its gauges do not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

from rollout.metrics import catalogue
from rollout.metrics.catalogue import MetricSpec, MetricType

LabelValues = tuple[tuple[str, str], ...]
SampleChanges = dict[str, list[tuple[list[tuple[str, str]], float]]]
"""By the name of the sample: labels and value, in a form that JSON can represent."""
_SampleValues = dict[tuple[str, LabelValues], float]

_SKIPPED_SUFFIX = "_created"
_SPECS_BY_NAME = {family.base_name: family for family in catalogue.all_metrics()}


class ChangeTracker:
    """Finds which samples of a registry changed since the last call."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._last_reported: _SampleValues = {}

    def take_changes(self) -> SampleChanges:
        changed: SampleChanges = {}
        for metric in self._registry.collect():
            for sample in metric.samples:
                key = sample.name, tuple(sample.labels.items())
                if not sample.name.endswith(_SKIPPED_SUFFIX) and self._last_reported.get(key) != sample.value:
                    self._last_reported[key] = sample.value
                    changed.setdefault(sample.name, []).append((list(sample.labels.items()), sample.value))
        return changed


@dataclass(slots=True)
class MetricTotals:
    """The samples of all workers that one slot has had, one after another."""

    _current_worker: _SampleValues = field(default_factory=dict)
    _earlier_workers: _SampleValues = field(default_factory=dict)

    def add_changes(self, changed: Mapping[str, Iterable[tuple[Iterable[Iterable[str]], float]]]) -> None:
        """Add what the heartbeat of the present worker contains."""
        for name, samples in changed.items():
            for labels, value in samples:
                self._current_worker[name, tuple((key, label_value) for key, label_value in labels)] = value

    def end_worker(self) -> None:
        """Keep the counters of the present worker, which is gone, and drop its gauges."""
        for (name, labels), value in self._current_worker.items():
            if _spec_of_sample(name).metric_type is not MetricType.GAUGE:
                self._earlier_workers[name, labels] = self._earlier_workers.get((name, labels), 0.0) + value
        self._current_worker = {}

    def values(self) -> _SampleValues:
        totals = dict(self._earlier_workers)
        for key, value in dict(self._current_worker).items():
            totals[key] = totals.get(key, 0.0) + value
        return totals


def sum_metrics(all_totals: Iterable[MetricTotals]) -> Iterator[Metric]:
    """Yield one metric for each name that any of the totals has."""
    sums: _SampleValues = {}
    for worker_totals in all_totals:
        for key, value in worker_totals.values().items():
            if key not in sums:
                sums[key] = value
            else:
                combine = _spec_of_sample(key[0]).combine
                sums[key] = max(sums[key], value) if combine == "max" else sums[key] + value
    metrics: dict[str, Metric] = {}
    for (name, labels), value in sums.items():
        spec = _spec_of_sample(name)
        metric = metrics.setdefault(spec.name, Metric(spec.base_name, spec.description, spec.metric_type.value))
        metric.samples.append(Sample(name, dict(labels), value))
    yield from metrics.values()


def _spec_of_sample(sample_name: str) -> MetricSpec:
    base = sample_name
    for suffix in ("_total", "_bucket", "_count", "_sum"):
        base = base.removesuffix(suffix)
    return _SPECS_BY_NAME[base]
