"""Reads what a process exports, as Prometheus does."""

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, dict[tuple[str, ...], float]]
"""The values of a metric by its name, then by the values of its labels in the order of the labels' names."""


def parse_metrics(text: str) -> Samples:
    """Return the samples in a text of the Prometheus format."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def get(url: str) -> tuple[int, str]:
    """Return the status and the body of a URL."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(root: str) -> Samples:
    """Return the samples that the process at this URL exports now."""
    return parse_metrics(get(f"{root}/metrics")[1])
