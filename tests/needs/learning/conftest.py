"""Whole runs of the learning example. They need torch and take minutes; `.ci/learning` runs them."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FULL = os.environ.get("ROLLOUT_TESTS") == "full"
if importlib.util.find_spec("torch") is None or os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"):
    collect_ignore_glob = ["test_*.py"]
elif not FULL:
    collect_ignore = ["test_two_servers.py"]

_ROW_PROPERTY = "row of the table"
_COLUMNS = ("broken", "step", "what the example says")
_TEXT_WIDTH = 120

AddTableRow = Callable[..., None]


@pytest.fixture
def add_row(record_property: Callable[[str, object], None]) -> AddTableRow:
    """Add a row to the table of faults, and what the example says about them."""

    def row(*cells: object) -> None:
        record_property(_ROW_PROPERTY, [str(cell)[:_TEXT_WIDTH] for cell in cells])

    return row


def pytest_terminal_summary(terminalreporter: Any) -> None:
    # The properties of a report also arrive from the processes of xdist.
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == _ROW_PROPERTY
    ]
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    terminalreporter.section("what was broken, and what the example says")
    for row in (_COLUMNS, *rows):
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy."""
    from examples.grpo_color_codeword.checkpoint import make_policy

    directory = tmp_path_factory.mktemp("policy")
    make_policy(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def engine(checkpoint: Path, runs: Path) -> Iterator[str]:
    """An engine in a separate process, for all runs that do not break it."""
    from examples.grpo_color_codeword.processes import transformers_sampler

    with transformers_sampler(checkpoint, runs, runs / "engine.log") as url:
        yield url
