"""The wire form of the records on the trajectories queue: versioned msgpack maps in which nothing is sent twice.

    frames = encode_record(step)
    step = decode_record(frames)

The nodes of a step share one array of token ids. Images are named by the bytes of their hash; of an asset's file name,
only the part that does not follow from the hash is sent. A record of a newer minor version keeps its unknown fields in
`extra`. Records of a newer major version, and records that are damaged, too large or contain pixels, are refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from renderers_adapter.descriptors import (
    SAFE_NAME,
    raw_mm_common_fields,
    reject_processed,
    require_data_uri,
    require_safe,
)
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import NO_LOGPROBS, ImageSlot, LogicalIds, TokenRun
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.kinds import (
    NodeRecord,
    PromptSource,
    Record,
    RecordError,
    RecordHeader,
    RolloutFinished,
    RolloutStarted,
    RolloutStatus,
    Step,
)
from rollout.records.messages import ROLES, FinishReason, Message
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError

SCHEMA = 101
"""Major version times 100 plus minor version."""

_DEFAULT_PROMPT_SOURCE, _DEFAULT_FINISH_REASON = PromptSource.BRIDGE, FinishReason.STOP
"""The values that most steps have; a step with these values leaves them out."""

_HEADER_FIELD_TYPES = (str, str, str, str, int, int)
"""The types of a header's fields, in their order."""

_MICROSECONDS_PER_SECOND = 1_000_000
_T = TypeVar("_T")


def encode_record(record: Record) -> Frames:
    """Encode a record. Raises RecordError if it contains a processed tensor or cannot be encoded."""
    try:
        match record:
            case Step():
                fields = _encode_step(record)
            case RolloutStarted() | RolloutFinished():
                fields = {name: getattr(record, name) for name in record.__slots__ if name not in ("header", "extra")}
        if isinstance(record, RolloutFinished):
            fields["status"] = record.status.value
        wire = {"schema": SCHEMA, "kind": record.kind, "of": _encode_header(record.header), **record.extra, **fields}
        return encode({key: value for key, value in wire.items() if value is not None})
    except (CodecError, AdapterError, KeyError, ValueError) as error:
        raise RecordError(f"the {record.kind} record of {record.header.rollout} cannot be encoded: {error}") from error


def decode_record(frames: Sequence[bytes | memoryview]) -> Record:
    """Decode a record. Raises RecordError, and nothing else, if the bytes are no valid record."""
    try:
        wire = decode(frames)
    except CodecError as error:
        raise RecordError(f"the record cannot be decoded: {error}") from error
    if not isinstance(wire, dict):
        raise RecordError(f"the record is a {type(wire).__name__}, not a map.")
    schema = _pop_field(wire, "schema", int)
    if schema // 100 != SCHEMA // 100:
        raise RecordError(
            f"the record has the schema {schema / 100:.2f}; this version reads {SCHEMA // 100}.x. "
            "Use the same version of rollout on both sides."
        )
    kind = _pop_field(wire, "kind", str)
    decode_fields = _DECODERS.get(kind)
    if decode_fields is None:
        raise RecordError(f"the record has the unknown kind {kind!r}.")
    try:
        return decode_fields(wire)
    except (AdapterError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RecordError(f"the {kind} record is malformed: {error}") from error


def _encode_header(header: RecordHeader) -> list[Any]:
    return [getattr(header, name) for name in header.__slots__]


def _decode_header(wire: dict[str, Any]) -> RecordHeader:
    run, environment, group, rollout, attempt, seq = _pop_field(wire, "of", list)
    header = RecordHeader(run, environment, group, rollout, attempt, seq)
    field_types = type(run), type(environment), type(group), type(rollout), type(attempt), type(seq)
    if field_types != _HEADER_FIELD_TYPES:
        field_values = ", ".join(f"{name} is {getattr(header, name)!r}" for name in header.__slots__)
        raise RecordError(f"the header does not say whose record it is: {field_values}.")
    return header


def _decode_started(wire: dict[str, Any]) -> RolloutStarted:
    return RolloutStarted(
        header=_decode_header(wire),
        task=_pop_field(wire, "task", dict),
        sample=_pop_field(wire, "sample", int),
        group_size=_pop_field(wire, "group_size", int),
        policy_version=_pop_field(wire, "policy_version", str),
        config_digest=_pop_field(wire, "config_digest", str),
        model=_pop_field(wire, "model", str),
        pad_id=_pop_optional_field(wire, "pad_id", int),
        assets=_pop_field(wire, "assets", str),
        layout=_decode_layout(wire),
        extra=dict(wire),
    )


def _decode_layout(wire: dict[str, Any]) -> dict[str, Any]:
    layout = _pop_field(wire, "layout", dict)
    if layout:
        raw_mm_common_fields(**layout)
    return layout


def _decode_finished(wire: dict[str, Any]) -> RolloutFinished:
    return RolloutFinished(
        header=_decode_header(wire),
        status=RolloutStatus(_pop_field(wire, "status", str)),
        reward=_pop_optional_field(wire, "reward", float),
        metrics=_pop_field(wire, "metrics", dict),
        error=_pop_optional_field(wire, "error", dict),
        steps=_pop_field(wire, "steps", int),
        digest=_pop_field(wire, "digest", bytes),
        seconds=_pop_field(wire, "seconds", float),
        extra=dict(wire),
    )


def _encode_step(step: Step) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "parent": step.parent if step.parent != step.first - 1 else None,
        "first": step.first,
        **_encode_nodes(step.nodes),
        "images": [_encode_image(mm_hash, descriptor) for mm_hash, descriptor in step.images.items()] or None,
        "source": step.prompt_source.value if step.prompt_source is not _DEFAULT_PROMPT_SOURCE else None,
        "length": step.prompt_length,
        "digest": step.prompt_digest,
        "finish": step.finish_reason.value if step.finish_reason is not _DEFAULT_FINISH_REASON else None,
        "answer": step.answer_digest or None,
        "stop": step.stop_reason,
        "versions": [value for span in step.versions for value in (span.version, span.start, span.end)] or None,
        "policy": list(step.policy) if step.policy else None,
        "cached": step.cached_tokens,
        "tools": list(step.tools) if step.tools else None,
        "experts": _encode_evidence(step.routed_experts),
        "masks": _encode_evidence(step.sampling_mask),
        "timings": {stage: round(seconds * _MICROSECONDS_PER_SECOND) for stage, seconds in step.timings.items()}
        or None,
    }


def _decode_step(wire: dict[str, Any]) -> Step:
    first_node = _pop_field(wire, "first", int)
    parent = _pop_optional_field(wire, "parent", int)
    return Step(
        header=_decode_header(wire),
        turn=_pop_field(wire, "turn", int),
        parent=first_node - 1 if parent is None else parent,
        first=first_node,
        nodes=_decode_nodes(wire),
        images=dict([_decode_image(entry) for entry in _pop_optional_field(wire, "images", list) or ()]),
        prompt_source=PromptSource(_pop_optional_field(wire, "source", str) or _DEFAULT_PROMPT_SOURCE),
        prompt_length=_pop_field(wire, "length", int),
        prompt_digest=_pop_field(wire, "digest", bytes),
        finish_reason=FinishReason(_pop_optional_field(wire, "finish", str) or _DEFAULT_FINISH_REASON),
        answer_digest=_pop_optional_field(wire, "answer", bytes) or b"",
        stop_reason=wire.pop("stop", None),
        versions=_decode_version_spans(_pop_optional_field(wire, "versions", list) or []),
        policy=_decode_policy_versions(_pop_optional_field(wire, "policy", list)),
        cached_tokens=_pop_optional_field(wire, "cached", int),
        tools=_pop_optional_field(wire, "tools", list),
        routed_experts=_decode_routed_experts(_pop_optional_field(wire, "experts", dict)),
        sampling_mask=_decode_sampling_mask(_pop_optional_field(wire, "masks", dict)),
        timings={
            stage: microseconds / _MICROSECONDS_PER_SECOND
            for stage, microseconds in (_pop_optional_field(wire, "timings", dict) or {}).items()
        },
        extra=dict(wire),
    )


def _encode_nodes(nodes: Sequence[NodeRecord]) -> dict[str, Any]:
    """Encode the nodes. Only the last may be sampled: the number of its log-probs says how many of its tokens were."""
    answer_run = nodes[-1].run
    if any(node.run.sampled_from < len(node.run.ids) for node in nodes[:-1]):
        raise RecordError("a step's nodes before its answer were not sampled in it, and have no log-probs")
    return {
        "messages": [_encode_message(node.message) for node in nodes],
        "ids": np.concatenate([node.run.ids for node in nodes]),
        "lengths": [len(node.run.ids) for node in nodes],
        "logprobs": answer_run.logprobs if answer_run.sampled_from < len(answer_run.ids) else None,
        "places": _encode_sparse(
            [[number for slot in node.run.images for number in (slot.offset, slot.length)] for node in nodes]
        ),
        "words": _encode_sparse([[n for span in node.content for n in span] for node in nodes]),
    }


def _decode_nodes(wire: dict[str, Any]) -> tuple[NodeRecord, ...]:
    messages = [_decode_message(message) for message in _pop_field(wire, "messages", list)]
    ids, lengths = _pop_array(wire, "ids", np.int32), _pop_field(wire, "lengths", list)
    logprobs = _pop_array(wire, "logprobs", np.float32) if "logprobs" in wire else NO_LOGPROBS
    if len(messages) != len(lengths) or not messages or min(lengths) < 0 or sum(lengths) != len(ids):
        raise RecordError(f"{len(messages)} messages have {lengths} tokens, which are not the {len(ids)} of the record")
    if len(logprobs) > lengths[-1]:
        raise RecordError(f"the answer has {lengths[-1]} tokens and {len(logprobs)} log-probs")
    image_positions, content_spans = _decode_sparse(wire, "places"), _decode_sparse(wire, "words")
    nodes: list[NodeRecord] = []
    end, answer_index = 0, len(messages) - 1
    for index, message in enumerate(messages):
        start, end = end, end + lengths[index]
        node_logprobs = logprobs if index == answer_index else NO_LOGPROBS
        image_slots = _decode_image_slots(message, image_positions.get(index, ()))
        run = TokenRun(LogicalIds(ids[start:end]), end - start - len(node_logprobs), node_logprobs, image_slots)
        node_content_spans = (
            tuple([(int(first), int(last)) for first, last in _iter_pairs(content_spans[index])])
            if index in content_spans
            else ()
        )
        nodes.append(NodeRecord(message, run, node_content_spans))
    return tuple(nodes)


def _decode_sparse(wire: dict[str, Any], key: str) -> dict[int, list[Any]]:
    index_value_list = _pop_optional_field(wire, key, list)
    return dict(_iter_pairs(index_value_list)) if index_value_list else {}


def _decode_image_slots(message: Message, offsets_and_lengths: Sequence[Any]) -> tuple[ImageSlot, ...]:
    """Return the image slots of a message; there must be as many positions as it names images."""
    content = message["content"]
    parts = () if isinstance(content, str) else content
    hashes = [part["hash"] for part in parts if isinstance(part, dict) and "hash" in part]
    if not hashes and not offsets_and_lengths:
        return ()
    return tuple(
        [
            ImageSlot(mm_hash, int(offset), int(length))
            for mm_hash, (offset, length) in zip(hashes, _iter_pairs(offsets_and_lengths), strict=True)
        ]
    )


def _encode_message(message: Message) -> Message:
    """Encode the parts of a message without their type: a text as text, an image as the bytes of its hash."""
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_encode_part(part) for part in content]}


def _encode_part(part: Mapping[str, Any]) -> Any:
    match part["type"]:
        case "text":
            return part["text"]
        case "image":
            return bytes.fromhex(part["hash"])
    return part


def _decode_message(message: Message) -> Message:
    if message["role"] not in ROLES:
        raise RecordError(f"a message has the role {message['role']!r}; expected one of {', '.join(ROLES)}.")
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_decode_part(part) for part in content]}


def _decode_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "hash": part.hex()} if isinstance(part, bytes) else part


def _encode_image(mm_hash: str, descriptor: Mapping[str, Any]) -> list[Any]:
    """Encode the hash, the payload, and where the image is: a URI, or the part of its file name after the hash."""
    reject_processed(descriptor, "images")
    if "raw_uri" in descriptor:
        return [bytes.fromhex(mm_hash), descriptor["payload"], descriptor["raw_uri"]]
    stem, dot, extension = str(descriptor["raw_image_id"]).partition(".")
    return [bytes.fromhex(mm_hash), descriptor["payload"], bytes.fromhex(stem.removeprefix(mm_hash)), dot + extension]


def _decode_image(entry: list[Any]) -> tuple[str, dict[str, Any]]:
    """Decode and check an image's own part of its descriptor; `layout` in the started record has the shared part."""
    hash_bytes, payload, uri_or_suffix, *extension = entry
    mm_hash: str = hash_bytes.hex()
    reject_processed(payload, "images.payload")
    if extension:
        name = f"{mm_hash}{uri_or_suffix.hex()}{extension[0]}"
        require_safe(name, SAFE_NAME, "images.raw_image_id")
        return mm_hash, {"payload": dict(payload), "raw_image_id": name}
    require_data_uri(uri_or_suffix, "images.raw_uri")
    return mm_hash, {"payload": dict(payload), "raw_uri": uri_or_suffix}


def _encode_evidence(evidence: RoutedExperts | SamplingMask | None) -> dict[str, Any] | None:
    return None if evidence is None else {name: getattr(evidence, name) for name in evidence.__slots__}


def _decode_routed_experts(wire: dict[str, Any] | None) -> RoutedExperts | None:
    return None if wire is None else RoutedExperts(_pop_field(wire, "first", int), _pop_field(wire, "rows", np.ndarray))


def _decode_sampling_mask(wire: dict[str, Any] | None) -> SamplingMask | None:
    return (
        None if wire is None else SamplingMask(_pop_array(wire, "ids", np.int32), _pop_array(wire, "lengths", np.int32))
    )


def _decode_version_spans(wire: list[Any]) -> tuple[VersionSpan, ...]:
    spans = zip(wire[::3], wire[1::3], wire[2::3], strict=True)
    return tuple([VersionSpan(str(version), int(start), int(end)) for version, start, end in spans])


def _decode_policy_versions(wire: list[Any] | None) -> tuple[str, str] | None:
    if wire is None:
        return None
    version_at_start, version_at_end = wire
    return str(version_at_start), str(version_at_end)


_DECODERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    RolloutStarted.kind: _decode_started,
    Step.kind: _decode_step,
    RolloutFinished.kind: _decode_finished,
}


def _encode_sparse(lists: Sequence[list[int]]) -> list[Any] | None:
    """Return the lists that are not empty, each after its index."""
    return [entry for index, numbers in enumerate(lists) if numbers for entry in (index, numbers)] or None


def _iter_pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


def _pop_field(wire: dict[str, Any], key: str, expected_type: type[_T]) -> _T:
    value = wire.pop(key, None)
    if type(value) is expected_type:
        return value
    raise _wrong_type_error(key, value, expected_type)


def _pop_optional_field(wire: dict[str, Any], key: str, expected_type: type[_T]) -> _T | None:
    value = wire.pop(key, None)
    if value is None or type(value) is expected_type:
        return value
    raise _wrong_type_error(key, value, expected_type)


def _wrong_type_error(key: str, value: Any, expected_type: type) -> RecordError:
    if value is None:
        return RecordError(f"the record lacks {key!r}.")
    return RecordError(f"{key!r} is a {type(value).__name__}; expected {expected_type.__name__}.")


def _pop_array(wire: dict[str, Any], key: str, dtype: type[np.generic]) -> Any:
    value = _pop_field(wire, key, np.ndarray)
    if value.dtype != dtype or value.ndim != 1:
        raise RecordError(f"{key!r} is an array of {value.dtype} with shape {value.shape}; expected {dtype.__name__}.")
    return value
