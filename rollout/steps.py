"""The records on the trajectories queue: a rollout starts, takes steps, and finishes exactly once.

A step carries what its turn added and nothing else: the new nodes, and the descriptors of images that the rollout had
not introduced before. Messages name images by hash. Token ids and log-probs are raw arrays. A record of a newer minor
version keeps its unknown fields in `extra`; a newer major version is refused.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import numpy as np

from renderers_adapter.descriptors import reject_processed
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import NO_LOGPROBS, ImageSlot, LogicalIds, TokenRun
from rollout.errors import RolloutError
from rollout.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.messages import Message
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError

SCHEMA = 100
"""Major version times 100 plus minor version."""


class RecordError(RolloutError):
    """A record is not one of ours, is damaged, or comes from a newer major version."""


class RolloutStatus(StrEnum):
    """How a rollout ended. `ok` and `truncated` carry a reward and train; the others do not."""

    OK = "ok"
    TRUNCATED = "truncated"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Header:
    """Whose record it is. Records of one attempt are numbered by `seq` from 0 without a gap."""

    run: str
    environment: str
    group: str
    rollout: str
    attempt: int
    seq: int

    @property
    def identity(self) -> str:
        """Names the rollout among those of all runs and environments that share a queue."""
        return f"{self.run}/{self.environment}/{self.rollout}"

    @property
    def group_identity(self) -> str:
        """Names the group in the same way."""
        return f"{self.run}/{self.environment}/{self.group}"

    @property
    def tag(self) -> str:
        """The label outside of the payload: it names the rollout even if the record cannot be decoded."""
        return f"{self.identity}#{self.attempt}.{self.seq}"


_TAG = re.compile(r"([^/]*)/([^/]*)/(.*)#(\d+)\.(\d+)", re.DOTALL)


def header_of(tag: str, key: str) -> Header | None:
    """The header of a record that cannot be decoded, from its tag and its key, which is its group."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return None
    run, environment, rollout, attempt, seq = found.groups()
    return Header(run, environment, key, rollout, int(attempt), int(seq))


@dataclass(frozen=True, slots=True)
class RolloutStarted:
    """What holds for a whole attempt. `layout` is the part of every image's descriptor that they share."""

    kind: ClassVar[str] = "rollout_started"
    header: Header
    task: Mapping[str, Any]
    sample: int
    group_size: int
    policy_version: str
    config_digest: str
    model: str
    pad_id: int | None
    assets: str
    layout: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One new node; the nodes of a step hang from each other in order."""

    message: Message
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One turn. `nodes` get the indices from `first` on and hang below `parent` (-1: a root)."""

    kind: ClassVar[str] = "step"
    header: Header
    turn: int
    parent: int
    first: int
    nodes: tuple[NodeRecord, ...]
    images: Mapping[str, Mapping[str, Any]]
    prompt_source: str
    prompt_length: int
    prompt_digest: bytes
    finish_reason: str
    stop_reason: str | int | None = None
    versions: tuple[VersionSpan, ...] = ()
    policy: tuple[str, str] | None = None
    """The trainer's policy version when the turn began and when it ended, as far as the worker knew."""
    cached_tokens: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    routed_experts: RoutedExperts | None = None
    sampling_mask: SamplingMask | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> int:
        """The node that was sampled."""
        return self.first + len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """The one end of an attempt. `digest` covers its steps as they were sent, so that a lost one is noticed."""

    kind: ClassVar[str] = "rollout_finished"
    header: Header
    status: RolloutStatus
    reward: float | None
    metrics: Mapping[str, float]
    error: Mapping[str, str] | None
    steps: int
    digest: bytes
    seconds: float
    extra: Mapping[str, Any] = field(default_factory=dict)


Record = RolloutStarted | Step | RolloutFinished
_T = TypeVar("_T")


def encode_record(record: Record) -> Frames:
    """The frames of a record. Raises RecordError if it holds a processed tensor or cannot be encoded."""
    wire: dict[str, Any] = {"schema": SCHEMA, "kind": record.kind, **_header_wire(record.header), **record.extra}
    match record:
        case Step():
            _refuse_processed(record.images)
            wire |= _step_wire(record)
        case RolloutStarted() | RolloutFinished():
            wire |= {name: getattr(record, name) for name in record.__slots__ if name not in ("header", "extra")}
    wire = {key: value for key, value in wire.items() if value is not None}
    if isinstance(record, RolloutFinished):
        wire["status"] = record.status.value
    try:
        return encode(wire)
    except CodecError as error:
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
    try:
        return _READERS[kind](wire)
    except KeyError:
        raise RecordError(f"the record has the unknown kind {kind!r}.") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecordError(f"the {kind} record is malformed: {error}") from error


class StepsDigest:
    """A running digest over an attempt's steps, computed alike by the worker and by the reader."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, frames: Sequence[bytes | memoryview]) -> None:
        for frame in frames:
            self._hash.update(frame)

    def value(self) -> bytes:
        return self._hash.digest()


def _header_wire(header: Header) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__slots__}


def _step_wire(step: Step) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "parent": step.parent,
        "first": step.first,
        "nodes": [_node_wire(node) for node in step.nodes],
        "images": dict(step.images) or None,
        "prompt_source": step.prompt_source,
        "prompt_length": step.prompt_length,
        "prompt_digest": step.prompt_digest,
        "finish_reason": step.finish_reason,
        "stop_reason": step.stop_reason,
        "versions": [[span.version, span.start, span.end] for span in step.versions] or None,
        "policy": list(step.policy) if step.policy else None,
        "cached_tokens": step.cached_tokens,
        "tools": list(step.tools) if step.tools else None,
        "routed_experts": _slots(step.routed_experts),
        "sampling_mask": _slots(step.sampling_mask),
        "timings": dict(step.timings) or None,
    }


def _slots(evidence: RoutedExperts | SamplingMask | None) -> dict[str, Any] | None:
    return None if evidence is None else {name: getattr(evidence, name) for name in evidence.__slots__}


def _node_wire(node: NodeRecord) -> dict[str, Any]:
    wire: dict[str, Any] = {"message": node.message, "ids": node.run.ids}
    if node.run.sampled_from < len(node.run.ids):
        wire |= {"sampled_from": node.run.sampled_from, "logprobs": node.run.logprobs}
    if node.run.images:
        wire["images"] = [number for slot in node.run.images for number in (slot.offset, slot.length)]
    if node.content:
        wire["content"] = [number for span in node.content for number in span]
    return wire


def _read_header(wire: dict[str, Any]) -> Header:
    return Header(
        run=_take(wire, "run", str),
        environment=_take(wire, "environment", str),
        group=_take(wire, "group", str),
        rollout=_take(wire, "rollout", str),
        attempt=_take(wire, "attempt", int),
        seq=_take(wire, "seq", int),
    )


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
        layout=_take(wire, "layout", dict),
        extra=_extra(wire),
    )


def _read_step(wire: dict[str, Any]) -> Step:
    images = _take_optional(wire, "images", dict) or {}
    _refuse_processed(images)
    return Step(
        header=_read_header(wire),
        turn=_take(wire, "turn", int),
        parent=_take(wire, "parent", int),
        first=_take(wire, "first", int),
        nodes=tuple(_read_node(node) for node in _take(wire, "nodes", list)),
        images=images,
        prompt_source=_take(wire, "prompt_source", str),
        prompt_length=_take(wire, "prompt_length", int),
        prompt_digest=_take(wire, "prompt_digest", bytes),
        finish_reason=_take(wire, "finish_reason", str),
        stop_reason=wire.pop("stop_reason", None),
        versions=tuple(VersionSpan(str(v), int(a), int(b)) for v, a, b in _take_optional(wire, "versions", list) or ()),
        policy=_read_policy(_take_optional(wire, "policy", list)),
        cached_tokens=_take_optional(wire, "cached_tokens", int),
        tools=_take_optional(wire, "tools", list),
        routed_experts=_read_experts(_take_optional(wire, "routed_experts", dict)),
        sampling_mask=_read_mask(_take_optional(wire, "sampling_mask", dict)),
        timings=_take_optional(wire, "timings", dict) or {},
        extra=_extra(wire),
    )


def _read_experts(wire: dict[str, Any] | None) -> RoutedExperts | None:
    return None if wire is None else RoutedExperts(_take(wire, "first", int), _take(wire, "rows", np.ndarray))


def _read_mask(wire: dict[str, Any] | None) -> SamplingMask | None:
    return None if wire is None else SamplingMask(_array(wire, "ids", np.int32), _array(wire, "lengths", np.int32))


def _read_policy(wire: list[Any] | None) -> tuple[str, str] | None:
    if wire is None:
        return None
    began, ended = wire
    return str(began), str(ended)


def _read_node(wire: dict[str, Any]) -> NodeRecord:
    message, ids = _take(wire, "message", dict), _array(wire, "ids", np.int32)
    sampled_from = _take_optional(wire, "sampled_from", int)
    start = len(ids) if sampled_from is None else sampled_from
    logprobs = NO_LOGPROBS if sampled_from is None else _array(wire, "logprobs", np.float32)
    if not 0 <= start <= len(ids) or len(logprobs) != len(ids) - start:
        raise RecordError(f"a node of {len(ids)} tokens, sampled from {start}, holds {len(logprobs)} log-probs.")
    hashes = [part["hash"] for part in message.get("content") or () if isinstance(part, dict) and "hash" in part]
    numbers = _take_optional(wire, "images", list) or []
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    slots = tuple(ImageSlot(h, int(o), int(n)) for h, (o, n) in zip(hashes, pairs, strict=True))
    spans = _take_optional(wire, "content", list) or []
    content = tuple(zip(spans[::2], spans[1::2], strict=True))
    return NodeRecord(message, TokenRun(LogicalIds(ids), start, logprobs, slots), content)


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
        extra=_extra(wire),
    )


_READERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    RolloutStarted.kind: _read_started,
    Step.kind: _read_step,
    RolloutFinished.kind: _read_finished,
}


def _take(wire: dict[str, Any], key: str, kind: type[_T]) -> _T:
    value = _take_optional(wire, key, kind)
    if value is None:
        raise RecordError(f"the record lacks {key!r}.")
    return value


def _take_optional(wire: dict[str, Any], key: str, kind: type[_T]) -> _T | None:
    value = wire.pop(key, None)
    if value is None or isinstance(value, kind):
        return value
    raise RecordError(f"{key!r} is a {type(value).__name__}; expected {kind.__name__}.")


def _array(wire: dict[str, Any], key: str, dtype: type[np.generic]) -> Any:
    value = _take(wire, key, np.ndarray)
    if value.dtype != dtype or value.ndim != 1:
        raise RecordError(f"{key!r} is an array of {value.dtype} with shape {value.shape}; expected {dtype.__name__}.")
    return value


def _extra(wire: dict[str, Any]) -> dict[str, Any]:
    return dict(wire)


def _refuse_processed(images: Mapping[str, Any]) -> None:
    try:
        reject_processed(images)
    except AdapterError as error:
        raise RecordError(f"images: {error}") from error
