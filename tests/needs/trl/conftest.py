"""Tests that need trl, accelerate and peft. They are collected only if all of them are installed.

To run them, install `rollout-rl[trl]`, and run `pytest tests/needs/trl`; `bash .ci/trl` does both.
"""

import importlib
import importlib.util
import os
import warnings
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # TRL would report over the network that it is used

if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "trl", "accelerate", "peft")):
    collect_ignore_glob = ["*"]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("trl.trainer.grpo_trainer")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Ignore the warnings of the libraries, which pytest would turn into errors."""
    item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model with images."""
    from rollout.serving.tiny_model.checkpoint import make_checkpoint

    directory = tmp_path_factory.mktemp("policy")
    make_checkpoint(directory, "qwen3-vl", scale=4.0)
    return directory


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread; for such small matrices, several are slower."""
    importlib.import_module("torch").set_num_threads(1)
