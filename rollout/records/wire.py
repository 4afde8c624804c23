"""Encodes and decodes the records of the trajectories queue, as msgpack maps with a schema version.

    frames = encode_record(step)
    step = decode_record(frames)
    found = decode_queue_record(frames)     # a record of a rollout, or the status of a launch

A record of a newer minor version keeps its unknown fields in `extra`. A record is refused if it has another major
version, is damaged or too large, contains pixels, or has a value that `rollout.records.bounds` does not allow.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from renderers_adapter.descriptors import raw_mm_common_fields
from renderers_adapter.errors import AdapterError
from rollout.records.bounds import (
    MAX_COUNT,
    MAX_GROUP_SIZE,
    MAX_PATH_CHARACTERS,
    MAX_PATH_TOKENS,
)
from rollout.records.conversation_fields import (
    encode_root_kinds,
    encode_unreceived_turns,
    pop_constrained,
    pop_echo,
    pop_root_kinds,
    pop_unreceived_turns,
)
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.evidence import ANSWER_DIGEST_BYTES, PROMPT_DIGEST_BYTES
from rollout.records.evidence_fields import (
    decode_routed_experts,
    decode_sampling_mask,
    decode_version_spans,
    encode_evidence,
)
from rollout.records.fields import (
    Wire,
    pop_bytes,
    pop_field,
    pop_integer,
    pop_optional_field,
    pop_optional_integer,
    refuse_number,
    require_no_pixels,
    require_plain,
)
from rollout.records.kinds import (
    STEPS_DIGEST_BYTES,
    Record,
    RecordError,
    RecordHeader,
    RolloutFinished,
    RolloutStarted,
    Step,
)
from rollout.records.launch_status import LaunchStatus, pop_status, status_fields
from rollout.records.messages import FinishReason
from rollout.records.old_endings import upgrade_ending
from rollout.records.prompt_source_fields import encode_prompt_source, pop_prompt_source
from rollout.records.rewards import encode_rewards, encode_turn_rewards, pop_rewards, pop_turn_rewards, require_reward
from rollout.records.step_parts import decode_images, decode_nodes, encode_image, encode_nodes
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError

SCHEMA = 107
"""The version of the schema: 100 times the major version, plus the minor version."""

_DEFAULT_FINISH_REASON = FinishReason.STOP
"""The value that most steps have. It is not sent."""

_ABORTED = FinishReason.ABORT.value
_HEADER_FIELD_TYPES = [str, str, str, str, int, int]
"""The types of a header's fields, in the order of `RecordHeader`."""

_FIRST_SCHEMA_WITH_LIMITS = 103
_MICROSECONDS_PER_SECOND = 1_000_000
_MAX_ERROR_CHARACTERS = 500


def encode_record(record: Record) -> Frames:
    """Encode a record as frames. Raises RecordError if it cannot be encoded, or contains pixels."""
    try:
        match record:
            case Step():
                fields = _encode_step(record)
            case RolloutStarted():
                fields = {name: getattr(record, name) for name in record.__slots__ if name not in ("header", "extra")}
            case RolloutFinished():
                fields = _encode_finished(record)
        wire = {"schema": SCHEMA, "kind": record.kind, "of": _encode_header(record.header), **record.extra, **fields}
        return encode({key: value for key, value in wire.items() if value is not None}, lone_surrogates=False)
    except (CodecError, AdapterError, KeyError, ValueError) as error:
        raise RecordError(f"the {record.kind} record of {record.header.rollout} cannot be encoded: {error}") from error


def encode_status(status: LaunchStatus) -> Frames:
    """Encode the status of a launch as frames. Raises RecordError if it cannot be encoded."""
    try:
        return encode({"schema": SCHEMA, "kind": status.kind, **status_fields(status)}, lone_surrogates=False)
    except CodecError as error:
        raise RecordError(f"the status of launch {status.launch} of {status.run} cannot be encoded: {error}") from error


def decode_record(frames: Sequence[bytes | memoryview]) -> Record:
    """Decode a record of a rollout. Raises RecordError, and no other error, if it is not valid."""
    record = decode_queue_record(frames)
    if isinstance(record, LaunchStatus):
        raise RecordError(f"{record.tag}: the record is the status of a launch; expected a record of a rollout.")
    return record


def decode_queue_record(frames: Sequence[bytes | memoryview]) -> Record | LaunchStatus:
    """Decode any record of the trajectories queue. Raises RecordError, and no other error, if it is not valid."""
    try:
        return _decode_record(frames)
    except CodecError as error:
        raise RecordError(_shorten(f"the record cannot be decoded: {error}")) from error
    except RecordError as error:
        raise RecordError(_shorten(str(error))) from error


def _decode_record(frames: Sequence[bytes | memoryview]) -> Record | LaunchStatus:
    wire = decode(frames, lone_surrogates=False)
    if not isinstance(wire, dict):
        raise RecordError(f"the record is of type {type(wire).__name__}; expected a map.")
    schema = pop_field(wire, "schema", int)
    if schema // 100 != SCHEMA // 100:
        raise RecordError(
            f"the record has the schema {schema / 100:.2f}, but this program reads {SCHEMA // 100}.x. "
            "Use the same version of rollout for workers and trainer."
        )
    kind = pop_field(wire, "kind", str)
    decode_fields = _DECODERS.get(kind)
    if decode_fields is None:
        raise RecordError(f"the record has the unknown kind {kind!r}; expected one of {', '.join(_DECODERS)}.")
    try:
        if schema < _FIRST_SCHEMA_WITH_LIMITS and kind == RolloutFinished.kind:
            upgrade_ending(wire)
        return decode_fields(wire)
    except (AdapterError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RecordError(f"the {kind} record is malformed: {error}") from error


def _shorten(text: str) -> str:
    """Return the beginning of an error's text, because the text may quote the whole record."""
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"


def _encode_header(header: RecordHeader) -> list[Any]:
    return [getattr(header, name) for name in header.__slots__]


def _decode_header(wire: Wire) -> RecordHeader:
    values = pop_field(wire, "of", list)
    header = RecordHeader(*values)
    if list(map(type, values)) != _HEADER_FIELD_TYPES or not (
        0 <= header.attempt <= MAX_COUNT and 0 <= header.seq <= MAX_COUNT
    ):
        field_values = ", ".join(f"{name} is {getattr(header, name)!r}" for name in header.__slots__)
        raise RecordError(f"the header of the record is not valid: {field_values}.")
    return header


def _pop_extra(wire: Wire) -> Wire:
    """Return the remaining fields, which only a newer version knows. They may be arrays, but not pixels."""
    if not wire:
        return {}
    for value in wire.values():
        if type(value) is not np.ndarray:
            require_plain(value, "an unknown field")
    require_no_pixels(wire, "the record")
    return dict(wire)


def _decode_started(wire: Wire) -> RolloutStarted:
    group_size = pop_integer(wire, "group_size", 1, MAX_GROUP_SIZE)
    assets = pop_field(wire, "assets", str)
    if "\0" in assets or len(assets) > MAX_PATH_CHARACTERS:
        raise RecordError(f"'assets' is {assets!r}, which cannot be the path of a directory.")
    return RolloutStarted(
        header=_decode_header(wire),
        task=_decode_task(pop_field(wire, "task", dict)),
        sample=pop_integer(wire, "sample", 0, group_size - 1),
        group_size=group_size,
        policy_version=pop_field(wire, "policy_version", str),
        config_digest=pop_field(wire, "config_digest", str),
        model=pop_field(wire, "model", str),
        pad_id=pop_optional_integer(wire, "pad_id"),
        assets=assets,
        layout=_decode_layout(wire),
        extra=_pop_extra(wire),
    )


def _decode_task(task: Wire) -> Wire:
    types = [type(task.get(name)) for name in ("id", "index", "seed", "data")]
    if types != [str, int, int, dict]:
        raise RecordError(
            "'task' must have an 'id' (a string), an 'index' and a 'seed' (integers), and 'data' (a map)."
        )
    return task


def _decode_layout(wire: Wire) -> Wire:
    layout = pop_field(wire, "layout", dict)
    if layout:
        raw_mm_common_fields(**layout)
    return layout


def _encode_finished(finished: RolloutFinished) -> dict[str, Any]:
    return {
        "status": finished.status.value,
        "limit": finished.limit.value if finished.limit is not RolloutLimit.NONE else None,
        "reward": finished.reward,
        "rewards": encode_rewards(finished.rewards),
        "turn_rewards": encode_turn_rewards(finished.turn_rewards),
        "unreceived_turns": encode_unreceived_turns(finished.unreceived_turns),
        "root_kinds": encode_root_kinds(finished.root_kinds),
        "metrics": finished.metrics,
        "error": finished.error,
        "steps": finished.steps,
        "digest": finished.digest,
        "seconds": finished.seconds,
    }


def _decode_finished(wire: Wire) -> RolloutFinished:
    reward = pop_optional_field(wire, "reward", float)
    status_name, limit_name = pop_field(wire, "status", str), pop_optional_field(wire, "limit", str)
    metrics, seconds = pop_field(wire, "metrics", dict), pop_field(wire, "seconds", float)
    for name, value in metrics.items():
        if type(value) not in (float, int) or not math.isfinite(value):
            raise RecordError(f"the metric {name!r} is {value!r}; expected a finite number.")
    if not 0 <= seconds < math.inf:
        refuse_number("seconds", seconds, 0, math.inf)
    error = pop_optional_field(wire, "error", dict)
    if error is not None and not all(type(text) is str for text in error.values()):
        raise RecordError("'error' contains a value that is not a string.")
    status, limit = RolloutStatus(status_name), RolloutLimit(limit_name or RolloutLimit.NONE)
    if (reward is not None) != status.trains:
        raise RecordError(
            f"the status is {status} and the reward is {reward}; expected a reward if the status is ok, and else None."
        )
    rewards, turn_rewards = pop_rewards(wire), pop_turn_rewards(wire)
    if (rewards or turn_rewards) and not status.trains:
        raise RecordError(
            f"a rollout with the status {status} has named rewards or rewards of turns; only ok may have them."
        )
    return RolloutFinished(
        header=_decode_header(wire),
        status=status,
        limit=limit,
        reward=None if reward is None else require_reward(reward, "reward"),
        rewards=rewards,
        turn_rewards=turn_rewards,
        unreceived_turns=pop_unreceived_turns(wire),
        root_kinds=pop_root_kinds(wire),
        metrics=metrics,
        error=error,
        steps=pop_integer(wire, "steps"),
        digest=pop_bytes(wire, "digest", STEPS_DIGEST_BYTES),
        seconds=seconds,
        extra=_pop_extra(wire),
    )


def _encode_step(step: Step) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "parent": step.parent if step.parent != step.first - 1 else None,
        "first": step.first,
        **encode_nodes(step.nodes),
        "images": [encode_image(mm_hash, descriptor) for mm_hash, descriptor in step.images.items()] or None,
        **encode_prompt_source(step.prompt_source),
        "length": step.prompt_length,
        "digest": step.prompt_digest,
        "finish": step.finish_reason.value if step.finish_reason is not _DEFAULT_FINISH_REASON else None,
        "answer": step.answer_digest or None,
        "stop": step.stop_reason,
        "versions": [value for span in step.versions for value in (span.version, span.start, span.end)] or None,
        "policy": list(step.policy) if step.policy else None,
        "cached": step.cached_tokens,
        "tools": list(step.tools) if step.tools else None,
        "experts": encode_evidence(step.routed_experts),
        "masks": encode_evidence(step.sampling_mask),
        "banned": list(step.banned_ids) or None,
        "echo": step.echo.value if step.echo is not None else None,
        "constrained": step.constrained or None,
        "timings": {stage: round(seconds * _MICROSECONDS_PER_SECOND) for stage, seconds in step.timings.items()}
        or None,
    }


def _decode_step(wire: Wire) -> Step:
    first_node = pop_integer(wire, "first")
    parent = pop_optional_integer(wire, "parent", -1, first_node - 1)
    nodes, prompt_length = decode_nodes(wire), pop_integer(wire, "length", 0, MAX_PATH_TOKENS)
    sampled_count = len(nodes[-1].run.logprobs)
    stop_reason = wire.pop("stop", None)
    if stop_reason is not None and type(stop_reason) not in (str, int):
        raise RecordError(f"'stop' is of type {type(stop_reason).__name__}; expected a string or a token id.")
    finish = pop_optional_field(wire, "finish", str)
    if finish == _ABORTED:
        raise RecordError("'finish' is 'abort', but an aborted answer must not be recorded.")
    return Step(
        header=_decode_header(wire),
        turn=pop_integer(wire, "turn"),
        parent=first_node - 1 if parent is None else parent,
        first=first_node,
        nodes=nodes,
        images=decode_images(pop_optional_field(wire, "images", list) or []),
        prompt_source=pop_prompt_source(wire),
        prompt_length=prompt_length,
        prompt_digest=pop_bytes(wire, "digest", PROMPT_DIGEST_BYTES),
        finish_reason=FinishReason(finish) if finish else _DEFAULT_FINISH_REASON,
        answer_digest=pop_bytes(wire, "answer", ANSWER_DIGEST_BYTES) if "answer" in wire else b"",
        stop_reason=stop_reason,
        versions=decode_version_spans(pop_optional_field(wire, "versions", list) or [], sampled_count),
        policy=_decode_policy_versions(pop_optional_field(wire, "policy", list)),
        cached_tokens=pop_optional_integer(wire, "cached"),
        tools=_decode_tools(pop_optional_field(wire, "tools", list)),
        routed_experts=decode_routed_experts(pop_optional_field(wire, "experts", dict), prompt_length + sampled_count),
        sampling_mask=decode_sampling_mask(pop_optional_field(wire, "masks", dict), sampled_count),
        banned_ids=_decode_banned_ids(pop_optional_field(wire, "banned", list) or []),
        echo=pop_echo(wire),
        constrained=pop_constrained(wire),
        timings=_decode_timings(pop_optional_field(wire, "timings", dict) or {}),
        extra=_pop_extra(wire),
    )


def _decode_banned_ids(wire: list[Any]) -> tuple[int, ...]:
    if any(type(token) is not int or not 0 <= token <= MAX_COUNT for token in wire):
        raise RecordError(f"'banned' begins with {wire[:4]}; expected token ids.")
    return tuple(wire)


def _decode_policy_versions(wire: list[Any] | None) -> tuple[str, str] | None:
    if wire is None:
        return None
    version_at_start, version_at_end = wire
    if type(version_at_start) is not str or type(version_at_end) is not str:
        raise RecordError(f"'policy' is {wire!r}; expected two strings.")
    return version_at_start, version_at_end


def _decode_tools(tools: list[Any] | None) -> list[Mapping[str, Any]] | None:
    if tools is not None:
        require_plain(tools, "'tools'")
        if not all(type(tool) is dict for tool in tools):
            raise RecordError("'tools' contains a value that is not a map; expected a list of maps.")
    return tools


def _decode_timings(timings: Wire) -> dict[str, float]:
    seconds = {}
    for stage, microseconds in timings.items():
        if type(microseconds) is not int or not 0 <= microseconds <= MAX_COUNT * _MICROSECONDS_PER_SECOND:
            raise RecordError(
                f"'timings' has {microseconds!r} microseconds for {stage!r}; expected an integer of 0 or more."
            )
        seconds[stage] = microseconds / _MICROSECONDS_PER_SECOND
    return seconds


_DECODERS: dict[str, Callable[[Wire], Record | LaunchStatus]] = {
    RolloutStarted.kind: _decode_started,
    Step.kind: _decode_step,
    RolloutFinished.kind: _decode_finished,
    LaunchStatus.kind: pop_status,
}
