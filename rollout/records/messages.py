"""Chat messages: the type, tool calls, and the canonical form that identifies a message.

The canonical form names an image by its hash instead of by its URL, so that a message is the same message whether its
image is inlined, offloaded, or offloaded by another worker, and so that identifying a message never touches the
image's bytes. It is also the form that crosses the queue.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from typing import Any

import orjson

from rollout.errors import RolloutError

Message = dict[str, Any]

_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_TEXTS = frozenset(("reasoning_content", "tool_call_id", "name"))
ROLES = ("system", "user", "assistant", "tool")
_IMAGE_TYPES = ("image", "image_url", "input_image")


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


def canonicalise(
    messages: Sequence[Any], images: Iterable[tuple[int, int, str]], *, first: int = 0
) -> list[CanonicalMessage]:
    """The canonical forms of prepared messages; `images` are (message index, part index, hash), in order.

    `first` is the place of the first of these messages in their conversation, for whoever reads an error.

    Raises:
        MessageError: no template can render one of them; the text says which.
    """
    hashes: dict[int, dict[int, list[str]]] = {}
    for message_index, part_index, mm_hash in images:
        hashes.setdefault(message_index, {}).setdefault(part_index, []).append(mm_hash)
    return [_canonical(first + at, message, hashes.get(at, {})) for at, message in enumerate(messages)]


def tools_identity(tools: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Identifies a set of tool schemas; the tools belong to a conversation's root.

    Raises:
        MessageError: they are not JSON, of which a template writes them.
    """
    try:
        return _digest(list(tools)) if tools else b""
    except TypeError as error:
        raise MessageError(f"the tools are not a list of JSON schemas ({error}).") from None


class MessageMemory:
    """The messages of one rollout that were looked at before: a conversation comes again, and longer, at every turn.

    A message is known by being the same object with the same content. A snapshot of that content is kept, so that a
    message which was changed in place since is looked at anew.
    """

    _MOST = 8192

    def __init__(self) -> None:
        # The message is kept, too: as long as it lives, no other object can have its identity.
        self._known: dict[int, tuple[Any, Any, CanonicalMessage]] = {}

    def recall(self, messages: Sequence[Any]) -> list[CanonicalMessage]:
        """The canonical forms of a conversation's first messages, up to the first that is not as it was."""
        known = []
        for message in messages:
            entry = self._known.get(id(message))
            if entry is None:
                break
            known.append(entry)
        # All at once, because a whole conversation is compared at every turn.
        snapshots = [snapshot for _, snapshot, _ in known]
        if list(messages[: len(known)]) != snapshots:
            known = known[: list(map(ne, messages, snapshots)).index(True)]
        return [canonical for _, _, canonical in known]

    def learn(self, message: Any, canonical: CanonicalMessage) -> None:
        """Remember a message as it is now."""
        try:
            snapshot = _snapshot(message)
        except TypeError:
            return
        if len(self._known) >= self._MOST:
            self._known.clear()
        self._known[id(message)] = (message, snapshot, canonical)


def _snapshot(value: Any) -> Any:
    """A copy that shares only what cannot change. Raises TypeError for an object that is not plain data."""
    if isinstance(value, str | int | float | None):
        return value
    if type(value) is dict:
        return {key: _snapshot(inner) for key, inner in value.items()}
    if type(value) is list:
        return [_snapshot(inner) for inner in value]
    raise TypeError(f"a {type(value).__name__} may change without being seen to")


def _canonical(index: int, message: Any, images: Mapping[int, Sequence[str]]) -> CanonicalMessage:
    if not isinstance(message, Mapping):
        raise MessageError(f"messages[{index}] is a {type(message).__name__}; expected a dict with role and content.")
    role = message.get("role")
    if role not in ROLES:
        raise MessageError(f"messages[{index}] has the role {role!r}; expected one of {', '.join(ROLES)}.")
    form: Message = {key: message[key] for key in _KEYS if message.get(key) is not None}
    for key in _TEXTS & form.keys():
        if not isinstance(form[key], str):
            raise MessageError(f"messages[{index}].{key} is a {type(form[key]).__name__}; expected a string.")
    # An assistant that only calls tools says None in some dialects and nothing in others.
    content = form.setdefault("content", "")
    ordered: tuple[str, ...] = ()
    if isinstance(content, Sequence) and not isinstance(content, str):
        ordered = tuple(mm_hash for at in range(len(content)) for mm_hash in images.get(at, ()))
        unused = iter(ordered)
        form["content"] = [
            canonical
            for at, part in enumerate(content)
            for canonical in _parts(f"messages[{index}].content[{at}]", part, unused)
        ]
    elif not isinstance(content, str):
        raise MessageError(
            f"messages[{index}].content is a {type(content).__name__}; expected a string or a list of parts."
        )
    try:
        if "tool_calls" in form:
            # A copy, which stays what was rendered, whatever the environment does with its own meanwhile.
            form["tool_calls"] = orjson.loads(orjson.dumps(form["tool_calls"]))
        identity = _digest(_with_objects(form) if "tool_calls" in form else form)
    except (TypeError, AttributeError) as error:
        raise MessageError(f"messages[{index}] holds a value that is not JSON ({error}).") from None
    return CanonicalMessage(form, identity, ordered)


def _parts(where: str, part: Any, images: Iterator[str]) -> Iterator[Message]:
    """The texts and images of a part, in order; those of a tool's result are nested in it."""
    if isinstance(part, str):
        yield {"type": "text", "text": part}
        return
    kind, text, nested = (_field(part, name) for name in ("type", "text", "content"))
    if kind in _IMAGE_TYPES and (mm_hash := next(images, None)) is not None:
        yield {"type": "image", "hash": mm_hash}
    elif isinstance(text, str):
        yield {"type": "text", "text": text}
    elif isinstance(thinking := _field(part, "thinking"), str):
        yield {"type": "thinking", "thinking": thinking}
    elif isinstance(nested, list | tuple | str):
        for inner in [nested] if isinstance(nested, str) else nested:
            yield from _parts(where, inner, images)
    elif kind is None and (mm_hash := next(images, None)) is not None:
        yield {"type": "image", "hash": mm_hash}
    else:
        raise MessageError(f"{where} is neither text nor an image: {str(part)[:80]!r}.")


def _field(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _with_objects(form: Message) -> Message:
    """Tool calls whose arguments are an object; some dialects write it as JSON text, and mean the same call."""
    return {**form, "tool_calls": [_with_object(call) for call in form["tool_calls"]]}


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
