"""Defines chat messages, tool calls, and the canonical form by which messages are compared.

The canonical form names an image by its hash instead of its URL. So two messages with the same image are equal, even if
one has the image inline and the other in a file. The comparison does not read the image's bytes. The queue also carries
messages in canonical form.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import ne
from typing import Any

import orjson

from rollout.errors import RolloutError
from rollout.records.call_arguments import read_arguments
from rollout.records.message_values import countable_content
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.value_limits import MAX_VALUES, OutOfBoundsError, TooMuchTextError, ValueCounter, is_within_bounds

Message = dict[str, Any]
"""A chat message: `role`, `content`, and optionally `reasoning_content`, `tool_calls`, `tool_call_id` and `name`."""

_MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_STRING_KEYS = frozenset(("reasoning_content", "tool_call_id", "name"))
ROLES = ("system", "user", "assistant", "tool")
"""All roles of messages. `TrainingSample.content` refers to a role by its index in this tuple."""
_IMAGE_TYPES = ("image", "image_url", "input_image")
_FORM = '{"role": "user", "content": …}'
_PART_FORMS = '{"type": "text", "text": …} or {"type": "image", "image": …}'


class MessageError(RolloutError):
    """A conversation cannot be used, because a message or a tool in it is not valid."""


class FinishReason(StrEnum):
    """The reason why an answer ended.

    Attributes:
        STOP: the policy sampled a stop token or wrote a stop text.
        LENGTH: the answer reached `max_tokens`, or the end of the model's context.
        ABORT: the engine aborted the request. Such an answer is not recorded.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it.

    Attributes:
        id: the id of the call, which the tool's result names as its `tool_call_id`.
        name: the name of the tool; empty if the name could not be parsed.
        arguments: the arguments by their names; empty if they could not be parsed.
        raw: the text of the call as the model wrote it; can be empty.
        error: the reason why the call could not be parsed; None if it was parsed.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    raw: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CanonicalMessage:
    """A message in canonical form.

    Attributes:
        message: the message itself, as the queue carries it.
        digest: a hash of the message; the trace compares messages by it.
        image_hashes: one hash for each image of the message, in order; an image that occurs twice is listed twice.
        size: the size of the message as JSON, in bytes.
    """

    message: Message
    digest: bytes
    image_hashes: tuple[str, ...]
    size: int

    @property
    def role(self) -> str:
        """The role of the message, one of `ROLES`."""
        return str(self.message["role"])


def require_conversation(messages: object) -> None:
    """Check that an object can be the conversation of a turn; `canonicalise` checks each message.

    Raises:
        MessageError: the object is not a list of messages, is empty or too long, or ends with a message of the model.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(f"chat() got {describe_wrong_type(messages)}; expected a list of messages: [{_FORM}].")
    if not messages:
        raise MessageError(f"chat() got an empty list; expected at least one message, such as {_FORM}.")
    if len(messages) > MAX_VALUES:
        raise MessageError(f"chat() got {len(messages):,} messages; expected at most {MAX_VALUES:,}.")
    if isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
        raise MessageError(
            "the last message has the role 'assistant'; the conversation must end with a message to the model."
        )


def require_bounded(messages: Sequence[Any], *, first_index: int = 0) -> None:
    """Check that new messages are not too large to process. Call it before any other code reads them.

    Args:
        messages: the messages, as an environment wrote them.
        first_index: the index of `messages[0]` in the whole conversation, for error texts.

    Raises:
        MessageError: a message is nested too deep, or the messages contain too many values; the error names a message.
        TooMuchTextError: the messages have more text than fits into the context of any model.
    """
    counter = ValueCounter()
    for index, message in enumerate(messages, first_index):
        try:
            if isinstance(message, Mapping):
                counter.add([message.get(key) for key in _MESSAGE_KEYS if key != "content"])
                counter.add([countable_content(message.get("content"))])
        except TooMuchTextError:
            raise
        except OutOfBoundsError as error:
            raise MessageError(f"messages[{index}] {error}.") from None


def canonicalise(
    messages: Sequence[Any], image_positions: Iterable[tuple[int, int, str]], *, first_index: int = 0
) -> list[CanonicalMessage]:
    """Return the canonical forms of prepared messages.

    Args:
        messages: the messages; their images must be prepared.
        image_positions: (index in `messages`, part index, hash) of each image, in order.
        first_index: the index of `messages[0]` in the whole conversation, for error texts.

    Raises:
        MessageError: a message is not valid; the error names it.
    """
    hashes_by_message: dict[int, dict[int, list[str]]] = {}
    for message_index, part_index, mm_hash in image_positions:
        hashes_by_message.setdefault(message_index, {}).setdefault(part_index, []).append(mm_hash)
    return [
        _canonicalise_message(first_index + offset, message, hashes_by_message.get(offset, {}))
        for offset, message in enumerate(messages)
    ]


def digest_tools(tools: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Return a hash of a conversation's tool schemas; empty bytes if there are no tools.

    Raises:
        MessageError: the schemas cannot be written as JSON.
    """
    try:
        return _digest_json(list(tools))[0] if tools else b""
    except TypeError as error:
        raise MessageError(f"the tools cannot be written as JSON ({error}); give a list of JSON schemas.") from None


class CanonicalMessageCache:
    """Caches the canonical forms of one rollout's messages, because each turn sends the whole conversation again.

    The cache finds a message if it is the same object with the same content as before. It keeps a copy of the content,
    so it notices a message that was changed in place.
    """

    _MAX_ENTRIES = 8192

    def __init__(self) -> None:
        # An entry also keeps the message itself. While the message exists, no other object can have the same `id()`.
        self._entries: dict[int, tuple[Any, Any, CanonicalMessage]] = {}

    def known_prefix(self, messages: Sequence[Any]) -> list[CanonicalMessage]:
        """Return the canonical forms of all messages before the first one that is new or changed."""
        entries = []
        for message in messages:
            entry = self._entries.get(id(message))
            if entry is None:
                break
            entries.append(entry)
        # Compare whole lists, because this is fast, and each turn compares a whole conversation.
        snapshots = [snapshot for _, snapshot, _ in entries]
        if list(messages[: len(entries)]) != snapshots:
            entries = entries[: list(map(ne, messages, snapshots)).index(True)]
        return [canonical for _, _, canonical in entries]

    def add(self, message: Any, canonical: CanonicalMessage) -> None:
        """Add a message and its canonical form; skip a message that is too large or not plain data."""
        if not is_within_bounds(message):
            return
        try:
            snapshot = _copy_plain_data(message)
        except TypeError:
            return
        if len(self._entries) >= self._MAX_ENTRIES:
            self._entries.clear()
        self._entries[id(message)] = (message, snapshot, canonical)


def _copy_plain_data(value: Any) -> Any:
    """Return a deep copy of plain data. Raise TypeError for another object, which could change unnoticed."""
    if isinstance(value, str | int | float | None):
        return value
    if type(value) is dict:
        return {key: _copy_plain_data(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy_plain_data(inner) for inner in value]
    raise TypeError(f"a value of type {type(value).__name__} is not plain data")


def _canonicalise_message(index: int, message: Any, hashes_by_part: Mapping[int, Sequence[str]]) -> CanonicalMessage:
    if not isinstance(message, Mapping):
        fix = "append its .message instead" if hasattr(message, "finish_reason") else f"expected {_FORM}"
        raise MessageError(f"messages[{index}] is {describe_wrong_type(message)}; {fix}.")
    role = message.get("role")
    if role not in ROLES:
        found = f"has the role {show_value(role)}" if "role" in message else "has no role"
        raise MessageError(f"messages[{index}] {found}; expected one of {', '.join(ROLES)}.")
    if "content" not in message and role != "assistant":
        raise MessageError(f"messages[{index}] has no content; expected {_FORM}.")
    canonical_message: Message = {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
    for key in _STRING_KEYS & canonical_message.keys():
        if not isinstance(canonical_message[key], str):
            raise MessageError(
                f"messages[{index}].{key} is {describe_wrong_type(canonical_message[key])}; expected a string."
            )
    # If an assistant message only calls tools, some APIs set its content to None, and others leave the content out.
    content = canonical_message.setdefault("content", "")
    image_hashes: tuple[str, ...] = ()
    if isinstance(content, Sequence) and not isinstance(content, str):
        image_hashes = tuple(
            mm_hash for part_index in range(len(content)) for mm_hash in hashes_by_part.get(part_index, ())
        )
        remaining_hashes = iter(image_hashes)
        canonical_message["content"] = [
            canonical_part
            for at, part in enumerate(content)
            for canonical_part in _canonical_parts(f"messages[{index}].content[{at}]", part, remaining_hashes)
        ]
    elif not isinstance(content, str):
        raise MessageError(
            f"messages[{index}].content is {describe_wrong_type(content)}; expected a string, or a list of parts such "
            f"as {_PART_FORMS}."
        )
    try:
        if "tool_calls" in canonical_message:
            # Copy the calls, because the environment may change its own object later.
            calls = orjson.loads(orjson.dumps(canonical_message["tool_calls"]))
            canonical_message["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        digest, size = _digest_json(canonical_message)
    except (TypeError, AttributeError) as error:
        raise MessageError(f"messages[{index}] contains a value that JSON cannot write ({error}).") from None
    return CanonicalMessage(canonical_message, digest, image_hashes, size)


def _canonical_parts(location: str, part: Any, remaining_hashes: Iterator[str]) -> Iterator[Message]:
    """Yield the text parts and image parts of a part, in order. A tool's result can contain nested parts."""
    if isinstance(part, str):
        yield {"type": "text", "text": part}
        return
    part_type, text, nested_content = (_get_field(part, name) for name in ("type", "text", "content"))
    if part_type in _IMAGE_TYPES and (mm_hash := next(remaining_hashes, None)) is not None:
        yield {"type": "image", "hash": mm_hash}
    elif isinstance(text, str):
        yield {"type": "text", "text": text}
    elif isinstance(thinking := _get_field(part, "thinking"), str):
        yield {"type": "thinking", "thinking": thinking}
    elif isinstance(nested_content, list | tuple | str):
        for nested_part in [nested_content] if isinstance(nested_content, str) else nested_content:
            yield from _canonical_parts(location, nested_part, remaining_hashes)
    elif part_type is None and (mm_hash := next(remaining_hashes, None)) is not None:
        yield {"type": "image", "hash": mm_hash}
    else:
        found = f": {show_value(part)}" if isinstance(part, Mapping) else f", but {describe_wrong_type(part)}"
        raise MessageError(f"{location} is neither text nor an image{found}; write {_PART_FORMS}.")


def _get_field(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _with_parsed_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call with its arguments as an object, because chat APIs write them as JSON text.

    Text that cannot be such an object is not changed.
    """
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = read_arguments(function["arguments"])
    return call if arguments is None else {**call, "function": {**function, "arguments": arguments}}


def _digest_json(value: Any) -> tuple[bytes, int]:
    """Return a hash of a value's JSON, and the size of the JSON in bytes."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=16).digest(), len(data)
