"""Chat messages: the type, tool calls, and the canonical form that identifies a message.

The canonical form names an image by its hash instead of by its URL. So a message stays the same message if its image is
inlined, offloaded, or offloaded by another worker, and its identification never needs the image's bytes. The canonical
form is also the form that crosses the queue.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import ne
from typing import Any

import orjson

from rollout.errors import RolloutError
from rollout.records.message_values import countable_content
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.value_limits import MAX_VALUES, OutOfBoundsError, TooMuchTextError, ValueCounter, is_within_bounds

Message = dict[str, Any]

_MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_STRING_KEYS = frozenset(("reasoning_content", "tool_call_id", "name"))
ROLES = ("system", "user", "assistant", "tool")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_FORM = '{"role": "user", "content": …}'
_PART_FORMS = '{"type": "text", "text": …} or {"type": "image", "image": …}'


class MessageError(RolloutError):
    """A conversation contains something that no chat template can render."""


class FinishReason(StrEnum):
    """Why an answer ended.

    Attributes:
        STOP: the policy ended it.
        LENGTH: it reached `max_tokens`, or the end of the model's context.
        ABORT: the engine aborted the request; such an answer is never recorded.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it.

    Attributes:
        id: the id of the call, which the tool's result names.
        name: the name of the tool; empty if it could not be parsed.
        arguments: the arguments by their names; empty if they could not be parsed.
        raw: the text of the call as the model wrote it.
        error: why the call could not be parsed; None if it could.
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
        message: the message itself, as it crosses the queue.
        digest: a hash that identifies the message.
        image_hashes: the hashes of its images, in order.
        size: the bytes of the message as JSON.
    """

    message: Message
    digest: bytes
    image_hashes: tuple[str, ...]
    size: int

    @property
    def role(self) -> str:
        return str(self.message["role"])


def require_conversation(messages: object) -> None:
    """Check that these can be the messages of a turn; `canonicalise` checks each of them.

    Raises:
        MessageError: they are not a list of messages, or the last one is the model's own.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(f"chat() got {describe_wrong_type(messages)}; expected a list of messages: [{_FORM}].")
    if not messages:
        raise MessageError(f"chat() got no messages; the first may be {_FORM}.")
    if len(messages) > MAX_VALUES:
        raise MessageError(f"chat() got {len(messages):,} messages; at most {MAX_VALUES:,} are sent.")
    if isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
        raise MessageError("the conversation must end with a message to the model, not with its own.")


def require_bounded(messages: Sequence[Any], *, first_index: int = 0) -> None:
    """Check that new messages can be gone through; whatever looks into them comes after this.

    Args:
        messages: the messages, as an environment wrote them.
        first_index: the place of the first of these messages in their conversation, for the texts of errors.

    Raises:
        MessageError: they nest too deep, or hold too much; the text says which message is the first too much.
        TooMuchTextError: they hold more text than any model's context.
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
        messages: the messages, whose images are prepared.
        image_positions: (message index, part index, hash) of each image, in order.
        first_index: the place of the first of these messages in their conversation, for the texts of errors.

    Raises:
        MessageError: no template can render one of them; the text says which.
    """
    hashes_by_message: dict[int, dict[int, list[str]]] = {}
    for message_index, part_index, mm_hash in image_positions:
        hashes_by_message.setdefault(message_index, {}).setdefault(part_index, []).append(mm_hash)
    return [
        _canonicalise_message(first_index + offset, message, hashes_by_message.get(offset, {}))
        for offset, message in enumerate(messages)
    ]


def digest_tools(tools: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Return a hash that identifies a set of tool schemas; the tools belong to the root of a conversation.

    Raises:
        MessageError: the schemas are not JSON, so no template can write them.
    """
    try:
        return _digest_json(list(tools))[0] if tools else b""
    except TypeError as error:
        raise MessageError(f"the tools are not a list of JSON schemas ({error}).") from None


class CanonicalMessageCache:
    """The canonical forms of messages that one rollout sent before, because every turn repeats the conversation so far.

    A message is known if it is the same object with the same content. A snapshot of this content is kept, so that a
    message that was changed in place is not taken for the old one.
    """

    _MAX_ENTRIES = 8192

    def __init__(self) -> None:
        # The message itself is kept too: while it lives, no other object can have the same `id()`.
        self._entries: dict[int, tuple[Any, Any, CanonicalMessage]] = {}

    def known_prefix(self, messages: Sequence[Any]) -> list[CanonicalMessage]:
        """Return the canonical forms of the first messages, up to the first that is new or changed."""
        entries = []
        for message in messages:
            entry = self._entries.get(id(message))
            if entry is None:
                break
            entries.append(entry)
        # All at once, because every turn compares a whole conversation.
        snapshots = [snapshot for _, snapshot, _ in entries]
        if list(messages[: len(entries)]) != snapshots:
            entries = entries[: list(map(ne, messages, snapshots)).index(True)]
        return [canonical for _, _, canonical in entries]

    def add(self, message: Any, canonical: CanonicalMessage) -> None:
        """Remember a message with its present content. Keys that no template reads may hold anything."""
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
    """Return a copy that shares only immutable values. Raises TypeError for an object that is not plain data."""
    if isinstance(value, str | int | float | None):
        return value
    if type(value) is dict:
        return {key: _copy_plain_data(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy_plain_data(inner) for inner in value]
    raise TypeError(f"a {type(value).__name__} may change without being seen to")


def _canonicalise_message(index: int, message: Any, hashes_by_part: Mapping[int, Sequence[str]]) -> CanonicalMessage:
    if not isinstance(message, Mapping):
        fix = "append its .message" if hasattr(message, "finish_reason") else f"expected {_FORM}"
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
    # For an assistant that only calls tools, the content is None in some dialects and missing in others.
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
            # A copy stays what was rendered, even if the environment changes its own object later.
            canonical_message["tool_calls"] = orjson.loads(orjson.dumps(canonical_message["tool_calls"]))
        digest, size = _digest_json(
            _with_parsed_arguments(canonical_message) if "tool_calls" in canonical_message else canonical_message
        )
    except (TypeError, AttributeError) as error:
        raise MessageError(f"messages[{index}] holds a value that is not JSON ({error}).") from None
    return CanonicalMessage(canonical_message, digest, image_hashes, size)


def _canonical_parts(location: str, part: Any, remaining_hashes: Iterator[str]) -> Iterator[Message]:
    """Yield the texts and images of a part, in order; those of a tool's result are nested in it."""
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


def _with_parsed_arguments(message: Message) -> Message:
    """Return the message with parsed arguments of its tool calls.

    Some dialects write the arguments as an object, others as JSON text, and mean the same call.
    """
    return {**message, "tool_calls": [_parse_call_arguments(call) for call in message["tool_calls"]]}


def _parse_call_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _digest_json(value: Any) -> tuple[bytes, int]:
    """Return a hash of a value's JSON, and how many bytes this JSON has."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=16).digest(), len(data)
