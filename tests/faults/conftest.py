"""Tests that kill processes take minutes; they are collected where ROLLOUT_TESTS names a size, as CI and verify do."""

import os

if os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"):
    collect_ignore_glob = ["test_*.py"]
