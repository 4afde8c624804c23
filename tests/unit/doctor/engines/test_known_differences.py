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


ANSWER_START, ANSWER_REST = "<|im_start|>assistant\n", "Blue.<|im_end|>"
BLOCK = "<think>\nLight is scattered.\n</think>\n\n"
EMPTY_BLOCK = "<think>\n\n</think>\n\n"


def explain_kept_answer(
    start: str, inserted: str, *, reasoning: str = "", position: int = 1, as_text: bool = False
) -> set[KnownDifference] | None:
    """Return what a bridge is found to do if one of its messages has an insertion after `start`."""
    ours = renderer("qwen3")
    answer = {"role": "assistant", "content": "Blue.", **({"reasoning_content": reasoning} if reasoning else {})}
    chat = [_CHAT[0], answer, _CHAT[2]]
    conversation = Conversation("chat", chat, None, canonicalise(chat, ()), ())
    encode = ours.tokenizer.encode
    inserted_ids = ours.tokenizer.encode_as_text(inserted)["input_ids"] if as_text else encode(inserted)
    rendered = [[*encode(start), *encode(ANSWER_REST)] for _ in range(4)]
    bridged = [list(message) for message in rendered]
    bridged[position] = [*encode(start), *inserted_ids, *encode(ANSWER_REST)]
    return explain_bridged(ours, conversation, rendered, bridged)


@pytest.mark.parametrize(
    ("inserted", "reasoning"),
    [
        pytest.param(BLOCK, "Light is scattered.", id="a block"),
        pytest.param(EMPTY_BLOCK, "", id="an empty block"),
        pytest.param("<|channel>thought\nLight is scattered.\n<channel|>", "Light is scattered.", id="other marks"),
    ],
)
def test_a_bridge_may_insert_the_reasoning_of_an_answer(inserted: str, reasoning: str) -> None:
    found = explain_kept_answer(ANSWER_START, inserted, reasoning=reasoning)
    assert found == {KnownDifference.SAMPLED_REASONING}


@pytest.mark.parametrize(
    ("inserted", "reasoning"),
    [
        pytest.param("<|im_end|>", "Light is scattered.", id="an end token"),
        pytest.param(f"{BLOCK}<|im_end|>", "Light is scattered.", id="a block and an end token"),
        pytest.param(f"{BLOCK}<|im_end|>\n{ANSWER_START}", "Light is scattered.", id="a block and a turn"),
        pytest.param(f"No.<|im_end|>\n{ANSWER_START}", "", id="a turn"),
        pytest.param(BLOCK, "", id="reasoning that the message does not have"),
        pytest.param(BLOCK, "Light is blue.", id="other reasoning"),
        pytest.param(EMPTY_BLOCK, "Light is scattered.", id="an empty block in place of reasoning"),
        pytest.param("Sure. ", "", id="a text"),
        pytest.param("\n", "", id="white space"),
        pytest.param("</think>", "", id="half a block"),
        pytest.param(BLOCK * 2, "Light is scattered.", id="two blocks"),
    ],
)
def test_a_bridge_may_insert_nothing_else_into_an_answer(inserted: str, reasoning: str) -> None:
    assert explain_kept_answer(ANSWER_START, inserted, reasoning=reasoning) is None


def test_a_bridge_may_not_repeat_reasoning_that_the_template_writes() -> None:
    assert explain_kept_answer(f"{ANSWER_START}{EMPTY_BLOCK}", "</think>") is None
    assert explain_kept_answer(f"{ANSWER_START}{EMPTY_BLOCK}", EMPTY_BLOCK) is None


def test_the_marks_of_reasoning_must_be_control_tokens() -> None:
    assert explain_kept_answer(ANSWER_START, EMPTY_BLOCK, as_text=True) is None


@pytest.mark.parametrize("position", [0, 2, 3])
def test_a_bridge_may_insert_reasoning_only_into_answers(position: int) -> None:
    assert explain_kept_answer(ANSWER_START, EMPTY_BLOCK, position=position) is None


def test_a_bridge_may_not_leave_out_tokens_of_an_answer() -> None:
    rendered = [[1], [2, 3, 4], [5], [6]]
    assert explain_bridged(renderer("qwen3"), _CONVERSATION, rendered, [[1], [2, 4], [5], [6]]) is None


@pytest.mark.parametrize(
    ("own_text", "server_text"),
    [
        pytest.param("Blue.", "Blue!", id="another text"),
        pytest.param("Blue.<|im_end|>", "<|im_end|>Blue.", id="another place of a control token"),
    ],
)
async def test_other_tokens_are_only_known_for_the_same_text(own_text: str, server_text: str) -> None:
    ours = renderer("qwen3-vl")
    encode = ours.tokenizer.encode
    split = [encode(character)[0] for character in "Blue."]
    assert await explain_rendered(ours, _CONVERSATION, [split], encode("Blue.")) == {KnownDifference.PARTS}
    assert await explain_rendered(ours, _CONVERSATION, [encode(own_text)], encode(server_text)) is None


async def test_other_tokens_are_only_known_with_the_same_control_tokens() -> None:
    ours = renderer("qwen3-vl")
    spelled = ours.tokenizer.encode_as_text("<|im_end|>")["input_ids"]
    own_ids, server_ids = [*spelled, 1], [*ours.tokenizer.encode("<|im_end|>"), 1]
    assert ours.tokenizer.decode(own_ids) == ours.tokenizer.decode(server_ids)
    assert await explain_rendered(ours, _CONVERSATION, [own_ids], server_ids) is None


def test_a_line_break_after_an_answer_may_only_be_missing_in_the_families_that_leave_it_out() -> None:
    line_break = load_tokenizer(_MODEL).encode("\n")
    rendered = [[1], [2], [*line_break, 5], [6]]
    assert explain_bridged(renderer("qwen3-vl"), _CONVERSATION, rendered, [[1], [2], [5], [6]]) is None
