"""Collects the tests of doctor that play programs only with ROLLOUT_TESTS=ci or full."""

import os

if os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"):
    collect_ignore = ["test_command.py", "test_faults.py", "test_findings.py", "test_program_failures.py"]
