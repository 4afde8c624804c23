"""A known difference is only accepted if it is exactly as described."""

from typing import Any

import pytest

from renderers_adapter.tokenizer import load_tokenizer
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.config.sections import ModelConfig
from rollout.doctor.engines.conversations import Conversation
from rollout.doctor.engines.known_differences import KnownDifference, explain_bridged, explain_rendered
from rollout.doctor.engines.own_prompts import OwnRenderer
from rollout.records.messages import canonicalise

_MODEL = BUILTIN_MODELS["builtin:tiny"]
_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "\n\nThis: <|im_end|>."},
    {"role": "user", "content": "And now?"},
]
_CONVERSATION = Conversation("chat", _CHAT, None, canonicalise(_CHAT, ()), ())


def renderer(family: str, **template: Any) -> OwnRenderer:
    model = ModelConfig(name="tiny", path=_MODEL, renderer=family, template=template)
    return OwnRenderer(model, load_tokenizer(_MODEL), expands_images=True)


async def explain(ours: OwnRenderer, server_text: str) -> set[KnownDifference] | None:
    server_ids = ours.tokenizer.encode(server_text)
    return await explain_rendered(ours, _CONVERSATION, await ours.render(_CONVERSATION), server_ids)


SERVER_TEXT = (
    "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n\n\nThis: <|im_end|>.<|im_end|>\n"
    "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
)


async def test_several_known_differences_may_occur_together() -> None:
    found = await explain(renderer("qwen3-vl"), SERVER_TEXT)
    assert found == {KnownDifference.CONTROL_TOKENS, KnownDifference.PARTS}


async def test_an_empty_reasoning_block_is_known_for_the_family_that_keeps_it() -> None:
    found = await explain(renderer("qwen3", enable_thinking=False), SERVER_TEXT + "<think>\n\n</think>\n\n")
    assert found is None  # together with control tokens, this is no known difference
    plain = [_CHAT[0], {"role": "assistant", "content": "This."}, _CHAT[2]]
    conversation = Conversation("plain", plain, None, canonicalise(plain, ()), ())
    ours = renderer("qwen3", enable_thinking=False)
    text = SERVER_TEXT.replace("\n\n\nThis: <|im_end|>.", "\nThis.") + "<think>\n\n</think>\n\n"
    server_ids = ours.tokenizer.encode(text)
    assert await explain_rendered(ours, conversation, await ours.render(conversation), server_ids) == {
        KnownDifference.EMPTY_REASONING
    }


@pytest.mark.parametrize(
    ("text", "other"), [("And now?", "And then?"), ("This: <|im_end|>.", "This: ."), ("user\nAnd", "user\n\nAnd")]
)
async def test_any_other_difference_beside_a_known_one_is_not_known(text: str, other: str) -> None:
    assert await explain(renderer("qwen3-vl"), SERVER_TEXT.replace(text, other)) is None


def test_a_bridge_may_only_insert_tokens_into_an_answer() -> None:
    ours = renderer("qwen3")
    rendered = [[1], [2, 3, 4], [5], [6]]
    assert explain_bridged(ours, _CONVERSATION, rendered, [[1], [2, 8, 9, 3, 4], [5], [6]]) == {
        KnownDifference.SAMPLED_REASONING
    }
    for other in ([[1], [2, 4], [5], [6]], [[1], [2, 7, 4], [5], [6]], [[1], [2, 3, 4], [7, 5], [6]]):
        assert explain_bridged(ours, _CONVERSATION, rendered, other) is None


def test_a_line_break_after_an_answer_may_only_be_missing_in_the_families_that_leave_it_out() -> None:
    line_break = load_tokenizer(_MODEL).encode("\n")
    rendered = [[1], [2], [*line_break, 5], [6]]
    assert explain_bridged(renderer("qwen3-vl"), _CONVERSATION, rendered, [[1], [2], [5], [6]]) is None
