"""Tests that need trl, accelerate and peft. They are collected only if all of them are installed.

To run them, install `rollout-rl[trl]`, and run `pytest tests/needs/trl`; `bash .ci/trl` does both.
"""

import importlib.util
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # TRL would report that it is used

if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "trl", "accelerate", "peft")):
    collect_ignore_glob = ["*"]
