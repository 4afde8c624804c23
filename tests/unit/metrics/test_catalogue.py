"""The metrics, their documentation and the dashboard say the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rollout.metrics.catalogue import all_metrics
from rollout.metrics.specs import MetricSpec, MetricType

SPECS_BY_NAME = {family.name: family for family in all_metrics()}
HISTOGRAM_SUFFIXES = ("_bucket", "_count", "_sum")
ADDED_BY_PROMETHEUS = {"run", "instance", "job", "le"}


@pytest.fixture
def documentation(repository: Path) -> str:
    return (repository / "docs" / "metrics.md").read_text()


@pytest.fixture
def dashboard(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "docs" / "grafana.json").read_text())
    return found


def spec_of(name: str) -> MetricSpec | None:
    """Return the metric of a scraped sample."""
    for suffix in HISTOGRAM_SUFFIXES:
        spec = SPECS_BY_NAME.get(name.removesuffix(suffix))
        if spec is not None and spec.metric_type is MetricType.HISTOGRAM:
            return spec if name.endswith(HISTOGRAM_SUFFIXES) else None
    return SPECS_BY_NAME.get(name)


def test_every_metric_is_documented_with_its_type_labels_and_description(documentation: str) -> None:
    rows = re.findall(r"^\| `(rollout_\w+)` \| (\w+) \| ([\w, ]*) \| (.+?) \| (.+?) \|$", documentation, re.MULTILINE)
    documented = {name: (kind, labels, tells) for name, kind, labels, tells, _ in rows}
    assert documented == {
        family.name: (family.metric_type.value, ", ".join(family.label_names), family.description)
        for family in SPECS_BY_NAME.values()
    }


def test_every_metric_in_the_documentation_exists(documentation: str) -> None:
    mentioned = set(re.findall(r"\brollout_[a-z_]+[a-z]", documentation))
    assert {name for name in mentioned if name not in SPECS_BY_NAME and spec_of(name) is None} == {"rollout_finished"}


def test_names_follow_the_conventions_of_prometheus() -> None:
    for family in SPECS_BY_NAME.values():
        assert re.fullmatch(r"rollout(_[a-z]+)+", family.name)
        assert (family.metric_type is MetricType.COUNTER) == family.name.endswith("_total")
        assert (family.metric_type is MetricType.HISTOGRAM) == bool(family.buckets)
        assert list(family.buckets) == sorted(set(family.buckets))
        assert not family.name.endswith(HISTOGRAM_SUFFIXES)


def test_the_dashboard_uses_every_metric_and_only_existing_labels(dashboard: dict[str, Any]) -> None:
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = set()
    for expression in expressions:
        names = re.findall(r"\brollout_\w+", expression)
        assert names
        found = [spec_of(name) for name in names]
        assert None not in found, expression
        labels = {label for family in found if family is not None for label in family.label_names}
        for listed in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in listed.split(",")} <= labels | ADDED_BY_PROMETHEUS, expression
        for selected in re.findall(r"(\w+)=~?\"", expression):
            assert selected in labels | ADDED_BY_PROMETHEUS, expression
        assert expression.count("(") == expression.count(")")
        used |= {family.name for family in found if family is not None}
    assert used == set(SPECS_BY_NAME)


def test_panels_and_queries_of_the_dashboard_have_unique_names(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        names = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(names)) == len(names)
