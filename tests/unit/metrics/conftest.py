"""Reading what a process exports, as Prometheus would."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, dict[tuple[str, ...], float]]
"""By name, then by the values of the labels, in the order of their names."""


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    # A run in this process leaves its own configuration behind, which other tests would meet.
    yield
    structlog.reset_defaults()


@pytest.fixture
def read_metrics() -> Callable[[str], Samples]:
    """The samples in a text."""
    return parsed


@pytest.fixture
def get() -> Callable[[str], tuple[int, str]]:
    """Status and body of a URL."""

    def answer(url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return answer


@pytest.fixture
def scrape(get: Callable[[str], tuple[int, str]]) -> Callable[[str], Samples]:
    """The samples that a process exports now, by its root."""
    return lambda root: parsed(get(f"{root}/metrics")[1])
