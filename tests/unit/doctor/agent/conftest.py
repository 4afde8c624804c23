"""What the tests of doctor's plays share. Those that play programs are collected only with ROLLOUT_TESTS=ci or full."""

import os
from collections.abc import Iterator

import pytest
import structlog

if os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"):
    collect_ignore = ["test_command.py", "test_faults.py", "test_findings.py", "test_program_failures.py"]


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Reset the log, which a command leaves at warnings alone."""
    yield
    structlog.reset_defaults()
