"""Which templates get a content as a list of parts.

`tests/needs/torch/test_chat_templates.py` asks vLLM about the same templates.
"""

import pytest

from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from tests.unit.renderers_adapter.checkpoint_template.loops import TAKES_PARTS, TAKES_TEXT


@pytest.mark.parametrize("name", TAKES_PARTS)
def test_a_template_that_loops_over_contents_takes_parts(name: str) -> None:
    assert ChatTemplate(TAKES_PARTS[name]).takes_content_parts(None)


@pytest.mark.parametrize("name", TAKES_TEXT)
def test_a_template_that_does_not_loop_over_contents_takes_texts(name: str) -> None:
    assert not ChatTemplate(TAKES_TEXT[name]).takes_content_parts(None)
