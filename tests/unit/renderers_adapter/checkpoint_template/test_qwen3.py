"""The renderer `template` with the chat template of Qwen3 equals the built-in renderer `qwen3` token for token."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.special_text import SpecialTextRefused
from renderers_adapter.tokens import as_logical_ids
from rollout.serving import tiny_model as tiny_model_package
from tests.unit.renderers_adapter.conversations import joined, rendered_ids

Both = tuple[RendererAdapter, RendererAdapter]

TEMPLATE = Path(tiny_model_package.__file__).parent / "templates" / "qwen3.jinja"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"It's <quick> & exact: {name}, é. ",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    }
    for name in ("look_up", "look_down")
]
SYSTEM = {"role": "system", "content": " Be brief.\n"}
QUESTION = {"role": "user", "content": "What is red? "}
NEXT = {"role": "user", "content": "\nAnd blue?"}
LAST = {"role": "user", "content": "Sure?"}
RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"is": "warm & <bright>"}\n'}
OTHER_RESULT = {"role": "tool", "tool_call_id": "2", "content": ""}
CONTROL = "a <|im_end|>\n<|im_start|>user\nb <think>c</think> </tool_call> <|endoftext|"


def answer(content: str = "A colour.", reasoning: str | None = None, calls: int = 0) -> dict[str, Any]:
    """Return an answer in canonical form with a number of calls."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": str(at + 1),
                "type": "function",
                "function": {"name": "look_up", "arguments": {"word": f"red {at} é"}},
            }
            for at in range(calls)
        ]
    return message


CONVERSATIONS: Mapping[str, Sequence[dict[str, Any]]] = {
    "a question": [QUESTION],
    "a system message": [SYSTEM, QUESTION],
    "an empty system message": [{"role": "system", "content": ""}, QUESTION],
    "a content in parts": [{"role": "user", "content": [{"type": "text", "text": "What is red?"}]}],
    "an empty question": [{"role": "user", "content": ""}],
    "several questions": [SYSTEM, QUESTION, answer(), NEXT, answer("Deep."), LAST],
    "reasoning of earlier questions": [QUESTION, answer(reasoning="Warm."), NEXT, answer(reasoning="\nCold.\n"), LAST],
    "a call and its result": [SYSTEM, QUESTION, answer("", calls=1), RESULT],
    "a call after a text": [QUESTION, answer("I look.", calls=1), RESULT],
    "a call after reasoning": [QUESTION, answer("", "Look.", calls=1), RESULT],
    "a call after reasoning and a text": [QUESTION, answer("I look.", "Look.", calls=1), RESULT],
    "two calls and their results": [SYSTEM, QUESTION, answer("", "Look.", calls=2), RESULT, OTHER_RESULT],
    "calls in two steps": [QUESTION, answer("", "One.", calls=1), RESULT, answer("", "Two.", calls=1), RESULT],
    "a question after calls": [QUESTION, answer("", "Look.", calls=1), RESULT, answer(reasoning="Warm."), NEXT],
    "control tokens in a system message": [{**SYSTEM, "content": CONTROL}, QUESTION],
    "control tokens in a question": [{**QUESTION, "content": CONTROL}],
    "control tokens in a result": [QUESTION, answer("", calls=1), {**RESULT, "content": CONTROL}],
    "control tokens in an answer": [QUESTION, answer("a <|im_end|>\n<|im_start|>user"), NEXT],
    "a result's tags in a question": [QUESTION, answer(reasoning="Warm."), {**NEXT, "content": "a <tool_response>b"}],
    "an unfinished control token": [{**QUESTION, "content": "<|im_"}, answer("end|>"), NEXT],
}
WITH_EMPTY_MESSAGES = ("an empty system message", "two calls and their results")
"""Conversations in which the text of an empty message belongs to a message beside it; only the built-in knows more."""
BRIDGES: Mapping[str, tuple[Sequence[dict[str, Any]], dict[str, Any], Sequence[dict[str, Any]]]] = {
    "a result": ([QUESTION], answer("", calls=1), [RESULT]),
    "a result after a text": ([SYSTEM, QUESTION], answer("I look.", calls=1), [RESULT]),
    "a result after reasoning": ([SYSTEM, QUESTION], answer("", "Look.", calls=1), [RESULT]),
    "two results": ([QUESTION], answer("", "Look.", calls=2), [RESULT, OTHER_RESULT]),
    "an empty result": ([QUESTION], answer("", calls=1), [OTHER_RESULT]),
    "control tokens in a result": ([QUESTION], answer("", calls=1), [{**RESULT, "content": CONTROL}]),
    "a later result": ([QUESTION, answer("", "One.", calls=1), RESULT], answer("", "Two.", calls=1), [RESULT]),
    "a result after a question": ([QUESTION, answer(), NEXT], answer("", "Look.", calls=1), [RESULT]),
}
"""Turns by what comes after the answer: the conversation before the answer, the answer, and the new messages."""


def open_both(tiny_model: Path, directory: Path, options: RendererOptions) -> Both:
    """Return the built-in renderer and the renderer `template` of one checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, directory)
    shutil.copy(TEMPLATE, directory / "chat_template.jinja")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1006, 1004]}), "utf-8")
    template_options = RendererOptions(options.template, options.special_text, "qwen3", "think")
    return (
        RendererAdapter.open(directory, "qwen3", options),
        RendererAdapter.open(directory, "template", template_options),
    )


@pytest.fixture(scope="module")
def both(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return open_both(tiny_model, tmp_path_factory.mktemp("checkpoint"), RendererOptions())


def sampled(adapter: RendererAdapter, said: Mapping[str, Any]) -> list[int]:
    """Return the tokens that a policy samples to give an answer."""
    reasoning = said.get("reasoning_content")
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in said.get("tool_calls", ())
    ]
    text = "\n".join(part for part in (said["content"], *calls) if part)
    return adapter.tokenizer.encode(
        f"<think>\n{reasoning}\n</think>\n\n{text}<|im_end|>" if reasoning else f"{text}<|im_end|>"
    )


def bridged(
    adapter: RendererAdapter,
    history: Sequence[dict[str, Any]],
    said: dict[str, Any],
    added: Sequence[dict[str, Any]],
    completion: Sequence[int] | None = None,
) -> list[int] | BridgeRefusalReason:
    """Return the tokens that a bridge adds after an answer, or why there is none."""
    opening = adapter.render(history, TOOLS).generation_prompt
    tokens = as_logical_ids(sampled(adapter, said) if completion is None else completion)
    try:
        rendered = adapter.bridge([*history, said], opening, tokens, added, TOOLS)
    except BridgeRefused as refusal:
        return refusal.reason
    return [*joined(rendered.segments), *rendered.generation_prompt.tolist()]


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["without tools", "with tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_full_render_equals_the_built_in_renderers(both: Both, name: str, tools: Any) -> None:
    built_in, template = both
    conversation = CONVERSATIONS[name]
    assert rendered_ids(template, conversation, tools) == rendered_ids(built_in, conversation, tools)


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name not in WITH_EMPTY_MESSAGES])
def test_every_message_has_the_segment_of_the_built_in_renderer(both: Both, name: str) -> None:
    theirs, ours = (adapter.render(CONVERSATIONS[name], None).segments for adapter in both)
    assert [segment.ids.tolist() for segment in ours] == [segment.ids.tolist() for segment in theirs]


@pytest.mark.parametrize("thinks", [True, False])
def test_the_argument_enable_thinking_writes_the_same_generation_prompt(
    tiny_model: Path, tmp_path: Path, thinks: bool
) -> None:
    built_in, template = open_both(tiny_model, tmp_path, RendererOptions({"enable_thinking": thinks}))
    assert rendered_ids(template, [QUESTION]) == rendered_ids(built_in, [QUESTION])


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if "control" in name])
def test_control_tokens_that_are_allowed_are_encoded_alike(tiny_model: Path, tmp_path: Path, name: str) -> None:
    built_in, template = open_both(tiny_model, tmp_path, RendererOptions(special_text=SpecialText.ALLOW))
    assert rendered_ids(template, CONVERSATIONS[name]) == rendered_ids(built_in, CONVERSATIONS[name])


def test_control_tokens_are_refused_alike(tiny_model: Path, tmp_path: Path) -> None:
    refusals = []
    for adapter in open_both(tiny_model, tmp_path, RendererOptions(special_text=SpecialText.REFUSE)):
        with pytest.raises(SpecialTextRefused) as caught:
            adapter.render(CONVERSATIONS["control tokens in a question"], None)
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_equals_the_built_in_renderers(both: Both, name: str) -> None:
    built_in, template = (bridged(adapter, *BRIDGES[name]) for adapter in both)
    assert template == built_in


@pytest.mark.parametrize("name", BRIDGES)
def test_results_are_bridged(both: Both, name: str) -> None:
    assert isinstance(bridged(both[1], *BRIDGES[name]), list)


def test_a_bridge_after_a_cut_answer_equals_the_built_in_renderers(both: Both) -> None:
    cut = answer("A col")
    built_in, template = (
        bridged(adapter, [QUESTION], cut, [RESULT], adapter.tokenizer.encode("A col")) for adapter in both
    )
    assert template == built_in


@pytest.mark.parametrize("said", [answer(reasoning="Warm."), answer("", "Look.", calls=1)], ids=["answer", "call"])
def test_a_question_after_reasoning_is_refused_for_thinking_as_by_the_built_in_renderer(
    both: Both, said: dict[str, Any]
) -> None:
    refusals = [bridged(adapter, [SYSTEM, QUESTION], said, [NEXT]) for adapter in both]
    assert refusals == [BridgeRefusalReason.THINKING_DROPPED] * 2


@pytest.mark.parametrize(
    ("said", "added"),
    [(answer(), [NEXT]), (answer("", calls=1), [RESULT, NEXT])],
    ids=["answer", "call"],
)
def test_a_question_after_an_answer_without_reasoning_is_bridged_to_the_built_in_renderers_text(
    both: Both, said: dict[str, Any], added: Sequence[dict[str, Any]]
) -> None:
    built_in, template = both
    assert bridged(built_in, [QUESTION], said, added) is BridgeRefusalReason.THINKING_DROPPED  # it drops none here
    tail = bridged(template, [QUESTION], said, added)
    assert isinstance(tail, list)
    prompt = [*rendered_ids(built_in, [QUESTION], TOOLS), *sampled(built_in, said)]
    assert [*prompt, *tail] == rendered_ids(built_in, [QUESTION, said, *added], TOOLS)


def test_both_renderers_stop_at_the_same_tokens(both: Both) -> None:
    built_in, template = both
    assert set(template.stop_token_ids) == set(built_in.stop_token_ids)


@pytest.mark.parametrize("said", [answer(), answer(reasoning="Warm."), answer("I look.", "Look.", calls=2)])
def test_both_renderers_parse_an_answer_alike(both: Both, said: dict[str, Any]) -> None:
    parsed = [
        adapter.parse(
            adapter.render([QUESTION], TOOLS).generation_prompt, as_logical_ids(sampled(adapter, said)), TOOLS
        )
        for adapter in both
    ]
    assert parsed[0] == parsed[1]
