"""The differences between our prompts and a server's that are wanted.

A difference is only known if it is exactly as described. So each one is undone in our prompt, and then the prompts must
be equal.
"""

from enum import StrEnum

from renderers_adapter.special_text import SpecialText
from rollout.doctor.engines.conversations import Conversation
from rollout.doctor.engines.own_prompts import OwnPrompts, OwnRenderer, PromptTokens


class KnownDifference(StrEnum):
    """A difference that is wanted; the value says what differs.

    Attributes:
        CONTROL_TOKENS: see "Text that spells control tokens" in docs/traces.md. With `special_text: allow`, our prompt
            is that of the server.
        ANSWER_START: a policy samples an answer after the generation prompt. So a line break at the start of the answer
            shares no token with the line break before it. With each answer encoded as one text, our prompt is that of
            the server.
        EMPTY_REASONING: with `enable_thinking: false`, the generation prompt has an empty reasoning block. The
            renderers of Qwen3 and Qwen3.5 write it before earlier answers, too, but the template does not. With
            `enable_thinking: true` and the same generation prompt, our prompt is that of the server.
        SAMPLED_REASONING: a bridge keeps earlier answers as they were sampled, but the template leaves out their
            reasoning. Without one block of tokens in these answers, the bridged prompt is the rendered one.
        LINE_BREAK: the bridges of two families leave out the line break after an answer. With this line break, the
            bridged prompt is the rendered one.
    """

    CONTROL_TOKENS = "control tokens in a text stay text (model.special_text)"
    ANSWER_START = "line breaks at the start of an answer are tokens of their own"
    EMPTY_REASONING = "earlier answers keep the empty reasoning block of enable_thinking: false"
    SAMPLED_REASONING = "a bridge keeps the reasoning of earlier answers"
    LINE_BREAK = "a bridge leaves out the line break after an answer"


_RENDERERS_WITH_EMPTY_REASONING = ("qwen3", "qwen3.5", "qwen3.6", "qwen3.8")
_RENDERERS_WITHOUT_LINE_BREAK = ("laguna-m.1", "laguna-xs.2")


async def explain_rendered(
    renderer: OwnRenderer, conversation: Conversation, prompts: OwnPrompts, server_ids: list[int]
) -> KnownDifference | None:
    """Return the known difference between our rendered prompt and the server's; None if there is no such difference."""
    model, tokenizer = renderer.model, renderer.tokenizer
    roles = [message["role"] for message in conversation.messages]
    encoded_again = [
        tokenizer.encode(tokenizer.decode(ids)) if role == "assistant" else ids
        for role, ids in zip([*roles, None], prompts.rendered, strict=True)
    ]
    if join_tokens(encoded_again) == server_ids:
        return KnownDifference.ANSWER_START
    if SpecialText(model.special_text) is SpecialText.TEXT:
        allowing = await renderer.with_settings(special_text=SpecialText.ALLOW.value).make_prompts(conversation)
        if join_tokens(allowing.rendered) == server_ids:
            return KnownDifference.CONTROL_TOKENS
    if model.renderer in _RENDERERS_WITH_EMPTY_REASONING and model.template.get("enable_thinking") is False:
        template = {**model.template, "enable_thinking": True}
        thinking = await renderer.with_settings(template=template).make_prompts(conversation)
        if join_tokens([*thinking.rendered[:-1], prompts.rendered[-1]]) == server_ids:
            return KnownDifference.EMPTY_REASONING
    return None


def explain_bridged(
    renderer: OwnRenderer, conversation: Conversation, rendered: PromptTokens, bridged: PromptTokens
) -> set[KnownDifference] | None:
    """Return the known differences between a bridged prompt and the rendered one; None if there is another one."""
    line_break = renderer.tokenizer.encode("\n") if renderer.model.renderer in _RENDERERS_WITHOUT_LINE_BREAK else None
    found: set[KnownDifference] = set()
    was_answer = False
    roles = [message["role"] for message in conversation.messages]
    for role, whole, kept in zip([*roles, None], rendered, bridged, strict=True):
        if whole != kept:
            if role == "assistant" and _is_with_insertion(kept, whole):
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


def _is_with_insertion(longer: list[int], shorter: list[int]) -> bool:
    """Whether the longer list is the shorter one with tokens inserted at one place."""
    surplus = len(longer) - len(shorter)
    return surplus > 0 and any(
        longer[:at] == shorter[:at] and longer[at + surplus :] == shorter[at:] for at in range(len(shorter) + 1)
    )
