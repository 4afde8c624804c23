"""The differences between our prompts and a server's that are wanted.

A difference is only known if it is exactly as described. So each one is undone in our prompt, and then the prompts must
be equal.
"""

import re
from collections.abc import AsyncIterator
from enum import StrEnum

from renderers_adapter.options import SpecialText
from renderers_adapter.tokenizer import FastTokenizer
from rollout.doctor.engines.conversations import Conversation, without_reasoning
from rollout.doctor.engines.own_prompts import OwnRenderer, PromptTokens


class KnownDifference(StrEnum):
    """A difference that is wanted, or that does no harm; the value says what differs.

    Attributes:
        CONTROL_TOKENS: see "Text that spells control tokens" in docs/traces.md. With `special_text: allow`, our prompt
            is that of the server.
        EMPTY_REASONING: with `enable_thinking: false`, the generation prompt has an empty reasoning block. The
            renderers of Qwen3 and Qwen3.5 write it before earlier answers, too, but the template does not. With
            `enable_thinking: true` and the same generation prompt, our prompt is that of the server.
        UNWRITTEN_REASONING: Qwen3-Instruct-2507 has the renderer `qwen3`, but its template writes no reasoning, and the
            model samples none. Without the reasoning in the messages, our prompt is that of the server.
        PARTS: the text of both sides is the same. A renderer encodes some parts of it separately, such as an answer and
            the template's text before it. With the whole text encoded at once, our prompt is that of the server.
        SAMPLED_REASONING: a bridge keeps earlier answers as they were sampled, but the template leaves out their
            reasoning, or an empty reasoning block. Without it, the bridged prompt is the rendered one. What is left out
            is the text of the reasoning, the family's marks around it and white space, and no other token.
        LINE_BREAK: the bridges of two families leave out the line break after an answer. With this line break, the
            bridged prompt is the rendered one.
    """

    CONTROL_TOKENS = "control tokens in a text stay text, as model.special_text says"
    EMPTY_REASONING = "earlier answers keep the empty reasoning block of enable_thinking: false"
    UNWRITTEN_REASONING = "the server writes no reasoning, so this model must not sample any"
    PARTS = "the same text has other tokens, because its parts are encoded separately"
    SAMPLED_REASONING = "a bridge keeps the reasoning of earlier answers"
    LINE_BREAK = "a bridge leaves out the line break after an answer"


_RENDERERS_WITH_EMPTY_REASONING = ("qwen3", "qwen3.5", "qwen3.6", "qwen3.8")
_RENDERERS_WITH_UNWRITTEN_REASONING = ("qwen3",)
_RENDERERS_WITHOUT_LINE_BREAK = ("laguna-m.1", "laguna-xs.2")
_REASONING_MARKS = (("<think>", "</think>"), ("<|channel>thought", "<channel|>"))
"""The texts before and after reasoning in the formats whose bridges keep what the template leaves out."""


async def explain_rendered(
    renderer: OwnRenderer, conversation: Conversation, rendered: PromptTokens, server_ids: list[int]
) -> set[KnownDifference] | None:
    """Return the known differences between our rendered prompt and the server's; None if there is another one."""
    own_ids = join_tokens(rendered)
    async for difference, undone in _undo(renderer, conversation, rendered):
        if undone == own_ids:  # this prompt does not have the difference
            continue
        if undone == server_ids:
            return {difference}
        if _is_same_text(renderer, undone, server_ids):
            return {difference, KnownDifference.PARTS}
    return {KnownDifference.PARTS} if _is_same_text(renderer, own_ids, server_ids) else None


async def _undo(
    renderer: OwnRenderer, conversation: Conversation, rendered: PromptTokens
) -> AsyncIterator[tuple[KnownDifference, list[int]]]:
    """Yield each difference that our rendered prompt may have, and the prompt without it."""
    model = renderer.model
    if SpecialText(model.special_text) is SpecialText.TEXT:
        allowing = renderer.with_settings(special_text=SpecialText.ALLOW.value)
        yield KnownDifference.CONTROL_TOKENS, join_tokens(await allowing.render(conversation))
    if model.renderer in _RENDERERS_WITH_EMPTY_REASONING and model.template.get("enable_thinking") is False:
        thinking = renderer.with_settings(template={**model.template, "enable_thinking": True})
        messages = (await thinking.render(conversation))[:-1]
        yield KnownDifference.EMPTY_REASONING, join_tokens([*messages, rendered[-1]])
    if model.renderer in _RENDERERS_WITH_UNWRITTEN_REASONING:
        unwritten = await renderer.render(without_reasoning(conversation))
        yield KnownDifference.UNWRITTEN_REASONING, join_tokens(unwritten)


def _is_same_text(renderer: OwnRenderer, own_ids: list[int], server_ids: list[int]) -> bool:
    """Whether the server encoded our text at once, and both prompts have the same control tokens."""
    tokenizer = renderer.tokenizer
    own_control, server_control = ([i for i in ids if i in tokenizer.control_ids] for ids in (own_ids, server_ids))
    return own_control == server_control and tokenizer.encode(tokenizer.decode(own_ids)) == server_ids


def explain_bridged(
    renderer: OwnRenderer, conversation: Conversation, rendered: PromptTokens, bridged: PromptTokens
) -> set[KnownDifference] | None:
    """Return the known differences between a bridged prompt and the rendered one; None if there is another one."""
    line_break = renderer.tokenizer.encode("\n") if renderer.model.renderer in _RENDERERS_WITHOUT_LINE_BREAK else None
    found: set[KnownDifference] = set()
    was_answer = False
    messages = [(message["role"], message.get("reasoning_content", "")) for message in conversation.messages]
    for (role, reasoning), whole, kept in zip([*messages, (None, "")], rendered, bridged, strict=True):
        if whole != kept:
            if role == "assistant" and (
                _has_reasoning_inserted(renderer.tokenizer, kept, whole, reasoning)
                or _has_reasoning_for_space(renderer.tokenizer, kept, whole, reasoning)
            ):
                found.add(KnownDifference.SAMPLED_REASONING)
            elif was_answer and line_break and whole == line_break + kept:
                found.add(KnownDifference.LINE_BREAK)
            else:
                return None
        was_answer = role == "assistant"
    return found


def join_tokens(prompt: PromptTokens) -> list[int]:
    """Return the tokens of a whole prompt."""
    return [token for message in prompt for token in message]


def _has_reasoning_inserted(tokenizer: FastTokenizer, kept: list[int], whole: list[int], reasoning: str) -> bool:
    """Whether an answer that a bridge keeps is the rendered one with its reasoning inserted at one place."""
    surplus = len(kept) - len(whole)
    return surplus > 0 and any(
        kept[:at] == whole[:at]
        and kept[at + surplus :] == whole[at:]
        and _is_reasoning(tokenizer, kept[at : at + surplus], tokenizer.decode(whole), reasoning.strip())
        for at in range(len(whole) + 1)
    )


def _has_reasoning_for_space(tokenizer: FastTokenizer, kept: list[int], whole: list[int], reasoning: str) -> bool:
    """Whether an answer that a bridge keeps is the rendered one with its reasoning in the place of white space.

    Templates write reasoning directly before the text, but without reasoning some keep the white space of the text.
    """
    kept_text, whole_text = tokenizer.decode(kept), tokenizer.decode(whole)
    if _control_ids(tokenizer, kept) != _control_ids(tokenizer, tokenizer.encode(kept_text)):
        return False  # a mark is only spelled
    for opening, closing in _REASONING_MARKS:
        block = rf"\s*{re.escape(opening)}\s*{re.escape(reasoning.strip())}\s*{re.escape(closing)}\s*"
        found = re.search(block, kept_text)
        if found is None or opening in whole_text:
            continue
        before, after = kept_text[: found.start()], kept_text[found.end() :]
        ids_without = tokenizer.encode(before + after)
        is_same_text = re.fullmatch(rf"{re.escape(before)}\s*{re.escape(after)}", whole_text) is not None
        return is_same_text and _control_ids(tokenizer, ids_without) == _control_ids(tokenizer, whole)
    return False


def _control_ids(tokenizer: FastTokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.control_ids]


def _is_reasoning(tokenizer: FastTokenizer, inserted: list[int], whole_text: str, reasoning: str) -> bool:
    """Whether the inserted tokens are one block of reasoning, and the rendered answer has none."""
    text = tokenizer.decode(inserted)
    inserted_control, spelled_control = (
        [token for token in ids if token in tokenizer.control_ids] for ids in (inserted, tokenizer.encode(text))
    )
    return inserted_control == spelled_control and any(
        opening not in whole_text
        and re.fullmatch(rf"\s*{re.escape(opening)}\s*{re.escape(reasoning)}\s*{re.escape(closing)}\s*", text)
        for opening, closing in _REASONING_MARKS
    )
