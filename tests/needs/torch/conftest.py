"""Tests that need torch and transformers; they are collected only where both are installed.

The plain suite runs without either. To run these: install `rollout-rl[trainer]` (and torchvision for its backend) and
`pytest tests/needs/torch`.
"""

import importlib
import importlib.util

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["*"]  # directories too, whose own conftest imports torch
else:
    try:
        importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError):  # absent, or built for another torch
        collect_ignore_glob = ["test_torchvision*.py"]
