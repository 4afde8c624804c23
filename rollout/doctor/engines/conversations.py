"""The conversations that both sides render. Each is about one thing that chat templates write differently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from rollout.images import ImagePolicy, PreparedImage, prepare_images_async
from rollout.records.messages import CanonicalMessage, Message, canonicalise

Tools = Sequence[Mapping[str, Any]]

MODE_CONVERSATIONS = ("several turns", "reasoning before a tool's result")
"""The names of conversations that are also rendered in the other reasoning mode."""
_TOOLS: Tools = (
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": 'Paints a shape, e.g. "café" <b>&</b> 日本語.',
            "parameters": {
                "type": "object",
                "properties": {
                    "shape": {"type": "string", "enum": ["square", "circle"]},
                    "size": {"type": "integer", "minimum": 1},
                    "options": {"type": "object", "properties": {"fill": {"type": "boolean"}}},
                },
                "required": ["shape"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
    },
)
_ALL_TYPES = {
    "shape": "naïve \"café\" \\ <b>&</b> 'x'\n日本語",
    "size": 3,
    "ratio": -0.5,
    "fill": True,
    "shade": False,
    "frame": None,
    "empty": "",
    "points": [1, "a", {"b": [], "c": None}],
    "options": {"fill": {"colour": "red"}, "none": {}},
}
_ROUGH_SIZES = ((96, 64), (128, 160), (70, 200))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation whose images are prepared, as a session prepares them.

    Attributes:
        name: what the conversation is about.
        messages: the messages. Their images have the URLs that requests to the engine would have.
        tools: the schemas of the tools; None without tools.
        canonical_messages: the messages in canonical form.
        images: the images of the messages, in order.
    """

    name: str
    messages: Sequence[Message]
    tools: Tools | None
    canonical_messages: Sequence[CanonicalMessage]
    images: Sequence[PreparedImage]


async def prepare_conversations(image_policy: ImagePolicy, *, with_images: bool, end_token: str) -> list[Conversation]:
    """Return the conversations.

    Args:
        image_policy: where the images are stored.
        with_images: whether the model takes images.
        end_token: the text of the token that ends an answer.
    """
    conversations = []
    written = [*_text_conversations(), *(_image_conversations() if with_images else ()), _control_tokens(end_token)]
    for name, messages, tools in written:
        images = await prepare_images_async(messages, image_policy)
        canonical_messages = canonicalise(messages, images.image_positions)
        conversations.append(Conversation(name, messages, tools, canonical_messages, images.images))
    return conversations


def without_reasoning(conversation: Conversation) -> Conversation:
    """Return a conversation without the reasoning of its answers."""
    messages = [
        {key: value for key, value in message.items() if key != "reasoning_content"}
        for message in conversation.messages
    ]
    positions = [(image.message_index, image.part_index, image.asset.mm_hash) for image in conversation.images]
    return replace(conversation, messages=messages, canonical_messages=canonicalise(messages, positions))


def _text_conversations() -> list[tuple[str, list[Message], Tools | None]]:
    system, question = _message("system", "Be brief."), _message("user", "Which colour is the sky?")
    paint, result = (
        _answer(calls=[("paint", {"shape": "square", "size": 2})]),
        _result(0, "paint", "Painted: naïve 日本."),
    )
    thoughtful_call = _answer(reasoning="A square is asked for.", calls=[("paint", {"shape": "square"})])
    two_calls = _answer(calls=[("paint", {"shape": "circle"}), ("look", {})])
    return [
        ("a question", [question], None),
        ("a system message", [system, question], None),
        ("several turns", [system, question, _answer("Blue."), _message("user", "And at night?")], None),
        (
            "reasoning before a new question",
            [
                system,
                question,
                _answer("Blue.", reasoning="Light is scattered.\n\nSo: blue."),
                _message("user", "Why?"),
            ],
            None,
        ),
        ("tools without a system message", [question], _TOOLS),
        ("tools without a call", [system, question], _TOOLS),
        ("a call and its result", [system, question, paint, result], _TOOLS),
        (
            "a call with arguments of all types",
            [system, question, _answer(calls=[("paint", _ALL_TYPES)]), _result(0, "paint", '{"ok": true}')],
            _TOOLS,
        ),
        (
            "two calls at once",
            [system, question, two_calls, _result(0, "paint", "Painted."), _result(1, "look", "A circle.")],
            _TOOLS,
        ),
        (
            "a text before a call",
            [system, question, _answer("I look.", calls=[("look", {})]), _result(0, "look", "Blue.")],
            _TOOLS,
        ),
        ("reasoning before a tool's result", [system, question, thoughtful_call, result], _TOOLS),
        (
            "a new question after a tool's result",
            [system, question, thoughtful_call, result, _answer("Done."), _message("user", "Thanks. And now?")],
            _TOOLS,
        ),
        ("empty contents", [system, _message("user", ""), _answer(""), question], None),
        (
            "white space around contents",
            [
                _message("system", "\n Be brief. \n"),
                _message("user", "  Which colour?\n\n"),
                _answer("\n\nBlue. \n"),
                _message("user", "\tAnd at night? "),
            ],
            None,
        ),
    ]


def _image_conversations() -> list[tuple[str, list[Message], Tools | None]]:
    system = _message("system", "Be brief.")
    first, second, third = (_image_part(size) for size in _ROUGH_SIZES)
    question = {"type": "text", "text": "What is this?"}
    look = _answer(calls=[("look", {})])
    return [
        ("an image", [system, _message("user", [first, question])], None),
        (
            "several images",
            [
                system,
                _message("user", [first, {"type": "text", "text": " and "}, second]),
                _answer("Noise."),
                _message("user", [question, third]),
            ],
            None,
        ),
        (
            "an image in a tool's result",
            [system, _message("user", "Look."), look, _result(0, "look", [second, {"type": "text", "text": "Noise."}])],
            _TOOLS,
        ),
    ]


def _control_tokens(end_token: str) -> tuple[str, list[Message], None]:
    text = f"Repeat this: a{end_token}\nb{end_token}"
    return "control tokens in a text", [_message("system", "Be brief."), _message("user", text)], None


def _message(role: str, content: str | list[Message]) -> Message:
    return {"role": role, "content": content}


def _answer(content: str = "", *, reasoning: str = "", calls: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> Message:
    message: Message = _message("assistant", content)
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": _call_id(at, name), "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
            for at, (name, arguments) in enumerate(calls)
        ]
    return message


def _result(at: int, name: str, content: str | list[Message]) -> Message:
    return {**_message("tool", content), "tool_call_id": _call_id(at, name), "name": name}


def _call_id(at: int, name: str) -> str:
    """Return an id of the form that the template of Kimi needs; the others take any id."""
    return f"functions.{name}:{at}"


def _image_part(size: tuple[int, int]) -> Message:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}
