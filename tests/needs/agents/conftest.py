"""Tests in which real agent clients play through the gateway. They are collected only if all of them are installed.

To run them, run `bash .ci/agents`, which installs the clients.
"""

import importlib.util

import pytest

from tests.needs.agents import coding_clis

_PACKAGES = ("anthropic", "agents", "langgraph", "langchain_openai", "pydantic_ai", "litellm", "minisweagent")

if any(importlib.util.find_spec(name) is None for name in _PACKAGES) or not coding_clis.CODEX.exists():
    collect_ignore_glob = ["*"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Ignore the warnings of the clients' libraries, which pytest would turn into errors."""
    item.add_marker(pytest.mark.filterwarnings("ignore"))
