"""The tables of docs/models.md name exactly the families that there are, and suites that exist."""

import re
from pathlib import Path

import pytest
import yaml

from renderers_adapter.checkpoint_template.answer_parser import REASONING_PARSERS, TOOL_PARSERS
from rollout.config.sections import ModelConfig
from tests.chat_families.families import FAMILIES
from tests.guide_pages import GuidePage
from tests.unit.renderers_adapter.conversations import BUILT_IN

PAGE = GuidePage.read("models.md")


def test_the_page_lists_every_built_in_renderer_once() -> None:
    names = [name for row in PAGE.rows("`model.renderer`") for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(names) == BUILT_IN


def test_the_page_lists_every_family_that_is_played_with_its_template() -> None:
    assert [row[0] for row in PAGE.rows("family")] == list(FAMILIES)


def test_the_page_names_the_parsers_with_which_a_family_is_played() -> None:
    for row in PAGE.rows("family"):
        options = FAMILIES[row[0]].options
        for setting, value in (("tool_parser", options.tool_parser), ("reasoning_parser", options.reasoning_parser)):
            written = re.search(rf"`{setting}: ([\w.-]+)`", " ".join(row))
            switched_off = options.template.get("enable_thinking") is False and setting == "reasoning_parser"
            assert (written[1] if written else None) == (None if switched_off else value), (row[0], setting)


def test_every_suite_of_the_page_exists(repository: Path) -> None:
    suites = set(re.findall(r"`(tests/[^`]+)`", PAGE.text))
    assert len(suites) >= 6
    assert [suite for suite in suites if not (repository / suite).is_file()] == []


def test_the_page_names_every_parser() -> None:
    (line,) = re.findall(r"`model\.tool_parser`\*\* is one of (.*?)\.\s+Without", PAGE.text, re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", line)) == set(TOOL_PARSERS)
    assert all(f"`model.reasoning_parser`** is `{name}`" in PAGE.text for name in REASONING_PARSERS)


@pytest.mark.parametrize("key", ["name", "path", "renderer", "template", "tool_parser", "reasoning_parser"])
def test_the_yaml_of_the_page_has_only_keys_that_exist(key: str) -> None:
    model = yaml.safe_load("\n".join(PAGE.blocks("yaml")))["model"]
    assert set(model) <= set(ModelConfig.model_fields)
    assert key in model
