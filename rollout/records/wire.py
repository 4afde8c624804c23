"""The records on the trajectories queue, as they travel: versioned msgpack maps, with nothing sent twice.

    frames = encode_record(step)
    step = decode_record(frames)

A step's nodes share one array of token ids. Images are named by the bytes of their hash; of an asset's file name only
what the hash does not say is sent. A record of a newer minor version keeps its unknown fields in `extra`; a newer major
version is refused, and so is whatever is torn, too large, or carries pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from renderers_adapter.descriptors import (
    SAFE_NAME,
    raw_mm_contract,
    reject_processed,
    require_data_uri,
    require_safe,
)
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import NO_LOGPROBS, ImageSlot, LogicalIds, TokenRun
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.kinds import (
    Header,
    NodeRecord,
    Record,
    RecordError,
    RolloutFinished,
    RolloutStarted,
    RolloutStatus,
    Step,
    StepsDigest,
    header_of,
)
from rollout.records.messages import ROLES, Message
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError

__all__ = [
    "SCHEMA",
    "Header",
    "NodeRecord",
    "Record",
    "RecordError",
    "RolloutFinished",
    "RolloutStarted",
    "RolloutStatus",
    "Step",
    "StepsDigest",
    "decode_record",
    "encode_record",
    "header_of",
]

SCHEMA = 101
"""Major version times 100 plus minor version."""

_USUAL_SOURCE, _USUAL_FINISH = "bridge", "stop"
"""What most steps would say of themselves, and therefore leave out."""

_HEADER = (str, str, str, str, int, int)
"""What the fields of a header are, in their order."""

_MICROSECONDS = 1_000_000
_T = TypeVar("_T")


def encode_record(record: Record) -> Frames:
    """The frames of a record. Raises RecordError if it holds a processed tensor or cannot be encoded."""
    try:
        match record:
            case Step():
                fields = _step_wire(record)
            case RolloutStarted() | RolloutFinished():
                fields = {name: getattr(record, name) for name in record.__slots__ if name not in ("header", "extra")}
        if isinstance(record, RolloutFinished):
            fields["status"] = record.status.value
        wire = {"schema": SCHEMA, "kind": record.kind, "of": _header_wire(record.header), **record.extra, **fields}
        return encode({key: value for key, value in wire.items() if value is not None})
    except (CodecError, AdapterError, KeyError, ValueError) as error:
        raise RecordError(f"the {record.kind} record of {record.header.rollout} cannot be encoded: {error}") from error


def decode_record(frames: Sequence[bytes | memoryview]) -> Record:
    """The record in these frames. Raises RecordError, whatever the bytes are."""
    try:
        wire = decode(frames)
    except CodecError as error:
        raise RecordError(f"the record cannot be decoded: {error}") from error
    if not isinstance(wire, dict):
        raise RecordError(f"the record is a {type(wire).__name__}, not a map.")
    schema = _take(wire, "schema", int)
    if schema // 100 != SCHEMA // 100:
        raise RecordError(
            f"the record has the schema {schema / 100:.2f}; this version reads {SCHEMA // 100}.x. "
            "Use the same version of rollout on both sides."
        )
    kind = _take(wire, "kind", str)
    read = _READERS.get(kind)
    if read is None:
        raise RecordError(f"the record has the unknown kind {kind!r}.")
    try:
        return read(wire)
    except (AdapterError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RecordError(f"the {kind} record is malformed: {error}") from error


def _header_wire(header: Header) -> list[Any]:
    return [getattr(header, name) for name in header.__slots__]


def _read_header(wire: dict[str, Any]) -> Header:
    run, environment, group, rollout, attempt, seq = _take(wire, "of", list)
    header = Header(run, environment, group, rollout, attempt, seq)
    kinds = type(run), type(environment), type(group), type(rollout), type(attempt), type(seq)
    if kinds != _HEADER:
        told = ", ".join(f"{name} is {getattr(header, name)!r}" for name in header.__slots__)
        raise RecordError(f"the header does not say whose record it is: {told}.")
    return header


def _read_started(wire: dict[str, Any]) -> RolloutStarted:
    return RolloutStarted(
        header=_read_header(wire),
        task=_take(wire, "task", dict),
        sample=_take(wire, "sample", int),
        group_size=_take(wire, "group_size", int),
        policy_version=_take(wire, "policy_version", str),
        config_digest=_take(wire, "config_digest", str),
        model=_take(wire, "model", str),
        pad_id=_take_optional(wire, "pad_id", int),
        assets=_take(wire, "assets", str),
        layout=_read_layout(wire),
        extra=dict(wire),
    )


def _read_layout(wire: dict[str, Any]) -> dict[str, Any]:
    layout = _take(wire, "layout", dict)
    if layout:
        raw_mm_contract(**layout)
    return layout


def _read_finished(wire: dict[str, Any]) -> RolloutFinished:
    return RolloutFinished(
        header=_read_header(wire),
        status=RolloutStatus(_take(wire, "status", str)),
        reward=_take_optional(wire, "reward", float),
        metrics=_take(wire, "metrics", dict),
        error=_take_optional(wire, "error", dict),
        steps=_take(wire, "steps", int),
        digest=_take(wire, "digest", bytes),
        seconds=_take(wire, "seconds", float),
        extra=dict(wire),
    )


def _step_wire(step: Step) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "parent": step.parent if step.parent != step.first - 1 else None,
        "first": step.first,
        **_nodes_wire(step.nodes),
        "images": [_image_wire(mm_hash, item) for mm_hash, item in step.images.items()] or None,
        "source": step.prompt_source if step.prompt_source != _USUAL_SOURCE else None,
        "length": step.prompt_length,
        "digest": step.prompt_digest,
        "finish": step.finish_reason if step.finish_reason != _USUAL_FINISH else None,
        "answer": step.answer_digest or None,
        "stop": step.stop_reason,
        "versions": [part for span in step.versions for part in (span.version, span.start, span.end)] or None,
        "policy": list(step.policy) if step.policy else None,
        "cached": step.cached_tokens,
        "tools": list(step.tools) if step.tools else None,
        "experts": _evidence_wire(step.routed_experts),
        "masks": _evidence_wire(step.sampling_mask),
        "timings": {stage: round(spent * _MICROSECONDS) for stage, spent in step.timings.items()} or None,
    }


def _read_step(wire: dict[str, Any]) -> Step:
    first = _take(wire, "first", int)
    parent = _take_optional(wire, "parent", int)
    return Step(
        header=_read_header(wire),
        turn=_take(wire, "turn", int),
        parent=first - 1 if parent is None else parent,
        first=first,
        nodes=_read_nodes(wire),
        images=dict([_read_image(entry) for entry in _take_optional(wire, "images", list) or ()]),
        prompt_source=_take_optional(wire, "source", str) or _USUAL_SOURCE,
        prompt_length=_take(wire, "length", int),
        prompt_digest=_take(wire, "digest", bytes),
        finish_reason=_take_optional(wire, "finish", str) or _USUAL_FINISH,
        answer_digest=_take_optional(wire, "answer", bytes) or b"",
        stop_reason=wire.pop("stop", None),
        versions=_read_versions(_take_optional(wire, "versions", list) or []),
        policy=_read_policy(_take_optional(wire, "policy", list)),
        cached_tokens=_take_optional(wire, "cached", int),
        tools=_take_optional(wire, "tools", list),
        routed_experts=_read_experts(_take_optional(wire, "experts", dict)),
        sampling_mask=_read_mask(_take_optional(wire, "masks", dict)),
        timings={
            stage: spent / _MICROSECONDS for stage, spent in (_take_optional(wire, "timings", dict) or {}).items()
        },
        extra=dict(wire),
    )


def _nodes_wire(nodes: Sequence[NodeRecord]) -> dict[str, Any]:
    """Only the last node of a step may be sampled: its log-probs say how many of its tokens were."""
    last = nodes[-1].run
    if any(node.run.sampled_from < len(node.run.ids) for node in nodes[:-1]):
        raise RecordError("a step's nodes before its answer were not sampled in it, and have no log-probs")
    return {
        "messages": [_message_wire(node.message) for node in nodes],
        "ids": np.concatenate([node.run.ids for node in nodes]),
        "lengths": [len(node.run.ids) for node in nodes],
        "logprobs": last.logprobs if last.sampled_from < len(last.ids) else None,
        "places": _sparse([[n for slot in node.run.images for n in (slot.offset, slot.length)] for node in nodes]),
        "words": _sparse([[n for span in node.content for n in span] for node in nodes]),
    }


def _read_nodes(wire: dict[str, Any]) -> tuple[NodeRecord, ...]:
    messages = [_read_message(message) for message in _take(wire, "messages", list)]
    ids, lengths = _array(wire, "ids", np.int32), _take(wire, "lengths", list)
    logprobs = _array(wire, "logprobs", np.float32) if "logprobs" in wire else NO_LOGPROBS
    if len(messages) != len(lengths) or not messages or min(lengths) < 0 or sum(lengths) != len(ids):
        raise RecordError(f"{len(messages)} messages have {lengths} tokens, which are not the {len(ids)} of the record")
    if len(logprobs) > lengths[-1]:
        raise RecordError(f"the answer has {lengths[-1]} tokens and {len(logprobs)} log-probs")
    places, words = _read_sparse(wire, "places"), _read_sparse(wire, "words")
    nodes: list[NodeRecord] = []
    end, answer = 0, len(messages) - 1
    for at, message in enumerate(messages):
        start, end = end, end + lengths[at]
        mine = logprobs if at == answer else NO_LOGPROBS
        slots = _read_slots(message, places.get(at, ()))
        run = TokenRun(LogicalIds(ids[start:end]), end - start - len(mine), mine, slots)
        content = tuple([(int(first), int(last)) for first, last in _pairs(words[at])]) if at in words else ()
        nodes.append(NodeRecord(message, run, content))
    return tuple(nodes)


def _read_sparse(wire: dict[str, Any], key: str) -> dict[int, list[Any]]:
    flat = _take_optional(wire, key, list)
    return dict(_pairs(flat)) if flat else {}


def _read_slots(message: Message, numbers: Sequence[Any]) -> tuple[ImageSlot, ...]:
    """Where the images of a message are: as many places as it names images."""
    content = message["content"]
    parts = () if isinstance(content, str) else content
    hashes = [part["hash"] for part in parts if isinstance(part, dict) and "hash" in part]
    if not hashes and not numbers:
        return ()
    return tuple([ImageSlot(h, int(o), int(n)) for h, (o, n) in zip(hashes, _pairs(numbers), strict=True)])


def _message_wire(message: Message) -> Message:
    """Parts without their type: text as text, an image as the bytes of its hash."""
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_part_wire(part) for part in content]}


def _part_wire(part: Mapping[str, Any]) -> Any:
    match part["type"]:
        case "text":
            return part["text"]
        case "image":
            return bytes.fromhex(part["hash"])
    return part


def _read_message(message: Message) -> Message:
    if message["role"] not in ROLES:
        raise RecordError(f"a message has the role {message['role']!r}; expected one of {', '.join(ROLES)}.")
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_read_part(part) for part in content]}


def _read_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "hash": part.hex()} if isinstance(part, bytes) else part


def _image_wire(mm_hash: str, item: Mapping[str, Any]) -> list[Any]:
    """The hash, the family's payload, and where the image is: a URI, or how its file's name goes on after the hash."""
    reject_processed(item, "images")
    if "raw_uri" in item:
        return [bytes.fromhex(mm_hash), item["payload"], item["raw_uri"]]
    stem, dot, extension = str(item["raw_image_id"]).partition(".")
    return [bytes.fromhex(mm_hash), item["payload"], bytes.fromhex(stem.removeprefix(mm_hash)), dot + extension]


def _read_image(entry: list[Any]) -> tuple[str, dict[str, Any]]:
    """An image's part of its descriptor, checked as if it had been built here; the start's layout is the rest."""
    named, payload, where, *extension = entry
    mm_hash: str = named.hex()
    reject_processed(payload, "images.payload")
    if extension:
        name = f"{mm_hash}{where.hex()}{extension[0]}"
        require_safe(name, SAFE_NAME, "images.raw_image_id")
        return mm_hash, {"payload": dict(payload), "raw_image_id": name}
    require_data_uri(where, "images.raw_uri")
    return mm_hash, {"payload": dict(payload), "raw_uri": where}


def _evidence_wire(evidence: RoutedExperts | SamplingMask | None) -> dict[str, Any] | None:
    return None if evidence is None else {name: getattr(evidence, name) for name in evidence.__slots__}


def _read_experts(wire: dict[str, Any] | None) -> RoutedExperts | None:
    return None if wire is None else RoutedExperts(_take(wire, "first", int), _take(wire, "rows", np.ndarray))


def _read_mask(wire: dict[str, Any] | None) -> SamplingMask | None:
    return None if wire is None else SamplingMask(_array(wire, "ids", np.int32), _array(wire, "lengths", np.int32))


def _read_versions(wire: list[Any]) -> tuple[VersionSpan, ...]:
    spans = zip(wire[::3], wire[1::3], wire[2::3], strict=True)
    return tuple([VersionSpan(str(version), int(start), int(end)) for version, start, end in spans])


def _read_policy(wire: list[Any] | None) -> tuple[str, str] | None:
    if wire is None:
        return None
    began, ended = wire
    return str(began), str(ended)


_READERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    RolloutStarted.kind: _read_started,
    Step.kind: _read_step,
    RolloutFinished.kind: _read_finished,
}


def _sparse(lists: Sequence[list[int]]) -> list[Any] | None:
    """Those that are not empty, each after its place."""
    return [entry for at, numbers in enumerate(lists) if numbers for entry in (at, numbers)] or None


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _take(wire: dict[str, Any], key: str, kind: type[_T]) -> _T:
    value = wire.pop(key, None)
    if type(value) is kind:
        return value
    raise _other_kind(key, value, kind)


def _take_optional(wire: dict[str, Any], key: str, kind: type[_T]) -> _T | None:
    value = wire.pop(key, None)
    if value is None or type(value) is kind:
        return value
    raise _other_kind(key, value, kind)


def _other_kind(key: str, value: Any, kind: type) -> RecordError:
    if value is None:
        return RecordError(f"the record lacks {key!r}.")
    return RecordError(f"{key!r} is a {type(value).__name__}; expected {kind.__name__}.")


def _array(wire: dict[str, Any], key: str, dtype: type[np.generic]) -> Any:
    value = _take(wire, key, np.ndarray)
    if value.dtype != dtype or value.ndim != 1:
        raise RecordError(f"{key!r} is an array of {value.dtype} with shape {value.shape}; expected {dtype.__name__}.")
    return value
