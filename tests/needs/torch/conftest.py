"""Tests that need torch and transformers. They are collected only if both are installed.

To run them, install `rollout-rl[trainer]`, and run `pytest tests/needs/torch`.
"""

import importlib
import importlib.util

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["*"]  # also directories, whose conftest imports torch
else:
    try:
        importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError):  # not installed, or built for another torch
        collect_ignore_glob = ["test_torchvision*.py"]
