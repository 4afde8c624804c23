"""Writes an answer of the script as the tokens that a model of the family would sample.

The arguments of calls get white space and escapes that no template writes. So a prompt that is rendered from the parsed
messages has other tokens than the sampled ones, and only a bridge keeps these.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import ParsedCompletion, RenderedMessages
from renderers_adapter.tokens import as_logical_ids, concat_ids
from rollout.doctor.agent.script import ScriptedAnswer
from rollout.records.messages import Message

_OPENING: tuple[Message, ...] = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"})
"""A conversation that every template accepts. What a model samples after it depends only on its end."""
_ODD_SEPARATORS = (" ,  ", " :  ")
_Tools = Sequence[Mapping[str, Any]] | None


async def sample_tokens(answer: ScriptedAnswer, tools: _Tools, renderers: RendererPool) -> list[int]:
    """Return the tokens of an answer, with an end token.

    If the family cannot write reasoning, or calls beside a text, the answer loses them.
    """
    opened = await renderers.render(_OPENING, tools)
    ends = sorted(renderers.stop_token_ids, key=lambda token: token != renderers.tokenizer.eos_token_id)
    for wanted in _forms(answer):
        for ids in await _candidates(wanted, tools, renderers, opened):
            for end in ends if ids else ():
                if _says(renderers.parse(opened.generation_prompt, as_logical_ids([*ids, end]), tools), wanted):
                    return [*ids, end]
    return [*renderers.tokenizer.encode(answer.text or "The check is done."), ends[0]]


def _forms(answer: ScriptedAnswer) -> list[ScriptedAnswer]:
    """Return an answer, and what is left of it in families that cannot write all of it."""
    first_call = replace(answer, calls=answer.calls[:1], text="")
    return [
        answer,
        replace(answer, reasoning=""),
        replace(answer, text=""),
        replace(answer, text="", reasoning=""),
        first_call,
        replace(first_call, reasoning=""),
    ]


async def _candidates(
    answer: ScriptedAnswer, tools: _Tools, renderers: RendererPool, opened: RenderedMessages
) -> list[list[int]]:
    """Return the ways to write an answer, the oddest first."""

    async def rendered(answer: ScriptedAnswer) -> list[int]:
        """Return the tokens of an answer as the template writes it, without an end token."""
        try:
            rendered = await renderers.render([*_OPENING, _message_of(answer)], tools)
        except AdapterError:
            return []
        prompt = concat_ids(*(segment.ids for segment in opened.segments), opened.generation_prompt)
        conversation = concat_ids(*(segment.ids for segment in rendered.segments))
        return [token for token in conversation[len(prompt) :].tolist() if token not in renderers.stop_token_ids]

    call_texts = [""]
    if answer.calls:
        calls = renderers.decode(await rendered(replace(answer, text="", reasoning=""))).strip()
        call_texts = [_with_odd_arguments(calls, answer.calls), calls]
    bodies = ["\n".join(filter(None, (answer.text, calls))) for calls in call_texts]
    texts = [thoughts + body for body in bodies for thoughts in _written_thoughts(answer.reasoning)]
    return [*map(renderers.tokenizer.encode, texts), await rendered(answer)]


def _written_thoughts(reasoning: str) -> Iterator[str]:
    if not reasoning:
        yield ""
        return
    yield f"<think>\n{reasoning}\n</think>\n\n"
    yield f"{reasoning}\n</think>\n\n"  # the generation prompt of some families has opened it


def _with_odd_arguments(text: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the text of calls with other white space and escapes in their arguments, if the arguments are JSON."""
    for _, arguments in calls:
        odd = json.dumps(arguments, separators=_ODD_SEPARATORS)
        for is_ascii, separators in itertools.product((False, True), ((", ", ": "), (",", ":"))):
            text = text.replace(json.dumps(arguments, ensure_ascii=is_ascii, separators=separators), odd, 1)
    return text


def _message_of(answer: ScriptedAnswer) -> Message:
    message: Message = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": f"functions.{name}:{at}",
                "type": "function",
                "function": {"name": name, "arguments": dict(arguments)},
            }
            for at, (name, arguments) in enumerate(answer.calls)
        ]
    return message


def _says(parsed: ParsedCompletion, answer: ScriptedAnswer) -> bool:
    calls = [(call.name, dict(call.arguments)) for call in parsed.tool_calls if call.error is None]
    return (
        calls == [(name, dict(arguments)) for name, arguments in answer.calls]
        and len(calls) == len(parsed.tool_calls)
        and parsed.text.strip() == answer.text
        and (parsed.reasoning or "").strip() == answer.reasoning
    )
