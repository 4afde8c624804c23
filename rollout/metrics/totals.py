"""Samples of several workers become one metric: each worker tells what changed, its supervisor adds it up.

A counter that a dead worker had reached still counts; its gauges do not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

from rollout.metrics import catalogue
from rollout.metrics.catalogue import Family, Kind

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, list[tuple[list[tuple[str, str]], float]]]
"""By the name of the sample: labels and value, as JSON can say it."""
_Values = dict[tuple[str, Labels], float]

_UNTOLD = "_created"
_FAMILIES = {family.base: family for family in catalogue.families()}


class Changes:
    """What a registry's samples have come to since they were last asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._told: _Values = {}

    def take(self) -> Samples:
        changed: Samples = {}
        for metric in self._registry.collect():
            for sample in metric.samples:
                key = sample.name, tuple(sample.labels.items())
                if not sample.name.endswith(_UNTOLD) and self._told.get(key) != sample.value:
                    self._told[key] = sample.value
                    changed.setdefault(sample.name, []).append((list(sample.labels.items()), sample.value))
        return changed


@dataclass(slots=True)
class Tally:
    """The samples of all workers that one post has had, one after another."""

    _latest: _Values = field(default_factory=dict)
    _before: _Values = field(default_factory=dict)

    def hear(self, changed: Mapping[str, Iterable[tuple[Iterable[Iterable[str]], float]]]) -> None:
        """Take in what the present worker tells."""
        for name, samples in changed.items():
            for labels, value in samples:
                self._latest[name, tuple((key, text) for key, text in labels)] = value

    def bury(self) -> None:
        """The present worker is gone."""
        for (name, labels), value in self._latest.items():
            if _family(name).kind is not Kind.GAUGE:
                self._before[name, labels] = self._before.get((name, labels), 0.0) + value
        self._latest = {}

    def values(self) -> _Values:
        found = dict(self._before)
        for key, value in dict(self._latest).items():
            found[key] = found.get(key, 0.0) + value
        return found


def summed(tallies: Iterable[Tally]) -> Iterator[Metric]:
    """One metric for each family that any of them tells."""
    totals: _Values = {}
    for tally in tallies:
        for key, value in tally.values().items():
            if key not in totals:
                totals[key] = value
            else:
                combine = _family(key[0]).combine
                totals[key] = max(totals[key], value) if combine == "max" else totals[key] + value
    metrics: dict[str, Metric] = {}
    for (name, labels), value in totals.items():
        family = _family(name)
        metric = metrics.setdefault(family.name, Metric(family.base, family.tells, family.kind.value))
        metric.samples.append(Sample(name, dict(labels), value))
    yield from metrics.values()


def _family(sample: str) -> Family:
    base = sample
    for suffix in ("_total", "_bucket", "_count", "_sum"):
        base = base.removesuffix(suffix)
    return _FAMILIES[base]
