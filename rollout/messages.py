"""Chat messages: the type, tool calls, and the canonical form that identifies a message.

The canonical form names an image by its hash instead of by its URL, so that a message is the same message whether its
image is inlined, offloaded, or offloaded by another worker, and so that identifying a message never touches the
image's bytes. It is also the form that crosses the queue.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.errors import RolloutError

Message = dict[str, Any]

_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_ROLES = ("system", "user", "assistant", "tool")


class MessageError(RolloutError):
    """A conversation holds something that no chat template can render."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it; `error` says why it could not be parsed, and `raw` is what it wrote then."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    raw: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CanonicalMessage:
    """A message in the form that identifies it and crosses the queue, and the hashes of its images in order."""

    message: Message
    identity: bytes
    images: tuple[str, ...]

    @property
    def role(self) -> str:
        return str(self.message["role"])


def canonicalise(messages: Sequence[Any], images: Iterable[tuple[int, int, str]]) -> list[CanonicalMessage]:
    """The canonical forms of prepared messages; `images` are (message index, part index, hash), in order."""
    hashes: dict[int, dict[int, list[str]]] = {}
    for message_index, part_index, mm_hash in images:
        hashes.setdefault(message_index, {}).setdefault(part_index, []).append(mm_hash)
    return [_canonical(index, message, hashes.get(index, {})) for index, message in enumerate(messages)]


def tools_identity(tools: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Identifies a set of tool schemas; the tools belong to a conversation's root."""
    return _digest(list(tools)) if tools else b""


def _canonical(index: int, message: Any, images: dict[int, list[str]]) -> CanonicalMessage:
    if not isinstance(message, Mapping):
        raise MessageError(f"messages[{index}] is a {type(message).__name__}; expected a dict with role and content.")
    role = message.get("role")
    if role not in _ROLES:
        raise MessageError(f"messages[{index}] has the role {role!r}; expected one of {', '.join(_ROLES)}.")
    form: Message = {key: message[key] for key in _KEYS if message.get(key) is not None}
    content = form.get("content", "")
    ordered: list[str] = []
    if isinstance(content, Sequence) and not isinstance(content, str):
        form["content"] = [_part(index, at, part, images.get(at), ordered) for at, part in enumerate(content)]
    elif not isinstance(content, str):
        raise MessageError(
            f"messages[{index}].content is a {type(content).__name__}; expected a string or a list of parts."
        )
    try:
        identity = _digest(form)
    except TypeError as error:
        raise MessageError(f"messages[{index}] holds a value that is not JSON ({error}).") from None
    return CanonicalMessage(form, identity, tuple(ordered))


def _part(index: int, at: int, part: Any, images: list[str] | None, ordered: list[str]) -> Any:
    where = f"messages[{index}].content[{at}]"
    if images is not None:
        if len(images) != 1:
            raise MessageError(f"{where} holds {len(images)} nested images; give each image a part of its own.")
        ordered.append(images[0])
        return {"type": "image", "hash": images[0]}
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, Mapping) and isinstance(part.get("thinking"), str):
        return {"type": "thinking", "thinking": part["thinking"]}
    raise MessageError(f"{where} is neither text nor an image: {str(part)[:80]!r}.")


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
