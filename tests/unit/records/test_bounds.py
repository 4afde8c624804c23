"""A record with an invalid field is refused with the reason."""

import math
from typing import Any

import numpy as np
import pytest

from rollout.records.bounds import MAX_GROUP_SIZE, MAX_IMAGE_TOKENS, MAX_PATH_TOKENS
from rollout.records.kinds import RecordError, RolloutFinished, header_from_tag
from tests.unit.records.changed import decode_changed
from tests.unit.records.golden.records import RECORDS

HASH = b"12345678"
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}


def started(**changes: Any) -> Any:
    return decode_changed(RECORDS["rollout_started"], **changes)


def step(**changes: Any) -> Any:
    return decode_changed(RECORDS["step"], **changes)


def finished(**changes: Any) -> Any:
    return decode_changed(RECORDS["rollout_finished"], **changes)


def messages(**changes: Any) -> dict[str, Any]:
    """Return the messages of the step, with these changes to the answer."""
    question = {"role": "user", "content": [bytes(16), bytes(16)]}
    return {"messages": [question, {"role": "assistant", "content": "", **changes}]}


def header(attempt: Any, seq: Any) -> dict[str, Any]:
    return {"of": ["run", "environment", "group", "rollout", attempt, seq]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"group_size": size}, "'group_size' is") for size in (0, -1, 10**15, MAX_GROUP_SIZE + 1, True)],
        *[({"sample": number}, "'sample' is .* expected 0 to 3") for number in (-1, 4, 2**63)],
        *[({"pad_id": number}, "'pad_id' is") for number in (-1, 2**31, 1.0)],
        *[({"assets": path}, "'assets' is") for path in ("a\0b", "x" * 5000)],
        ({"task": {}}, "'task' must have"),
        ({"task": {"id": "a", "index": 0, "seed": 0.5, "data": {}}}, "'task' must have"),
        ({"layout": {"family": "qwen_vl", "fingerprint": "a" * 32, "modality": "/"}}, "modality"),
        (header(-1, 0), "header of the record is not valid: .* attempt is -1"),
        (header(1, 2**31), "header of the record is not valid: .* seq is 2147483648"),
        ({"model": "half a character: \ud83d"}, "surrogate|did not write the head frame"),
        ({"novelty": {"pixel_values": [0.5]}}, "pixel_values"),
        ({"pixel_values": np.zeros(3)}, "pixel_values"),
        ({"novelty": [np.zeros(3)]}, "ndarray"),
        ({"kind": "x" * 10_000}, "unknown kind 'xxx"),
    ],
)
def test_an_invalid_start_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as refused:
        started(**changes)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"turn": number}, "'turn' is") for number in (-1, 2**31, 0.0)],
        *[({"parent": number}, "'parent' is .* expected -1 to -1") for number in (-2, 0, 2**40)],
        *[({"length": number}, "'length' is") for number in (-1, MAX_PATH_TOKENS + 1, 10**18)],
        ({"ids": np.array([5, 900, 6, 900, 7, 8, -9, 40, 41, 2], np.int32)}, "the token id -9"),
        *[({"lengths": lengths}, "'lengths' is") for lengths in ([np.array(5), 5], [5.0, 5.0], [True, 9], [])],
        *[
            ({"logprobs": np.array([-0.5, number, -0.5], np.float32)}, "the lowest log-prob is")
            for number in (math.nan, math.inf, -math.inf, -9999.0, 1.0)
        ],
        *[
            ({"places": [0, [1, length, 3, 80]]}, f"an image has .* tokens; expected 1 to {MAX_IMAGE_TOKENS}")
            for length in (0, -1, 2_000_000_000, 2**64 - 1, 64.0)
        ],
        *[({"places": [0, [1, 64, at, 80]]}, "an image is at") for at in (-1, 1, 5, 2**63, 3.0)],
        ({"places": [0, [1, 64, 3, 80], 7, [1, 64]]}, "has the index of a message that does not exist"),
        *[
            ({"words": [0, spans]}, "the content spans of a message are")
            for spans in ([3, 1], [-1, 2], [0, 6], [0.0, 2])
        ],
        ({"words": [9, [0, 1]]}, "has the index of a message that does not exist"),
        *[
            ({"images": [[bytes(16), {}, bytes(16), name]]}, "raw_image_id")
            for name in ("passwd", ".svg", "/x.png", "")
        ],
        ({"images": [[b"", {}, bytes(32), ".png"]]}, "bytes of an image's hash"),
        ({"images": [[HASH, {}, "data:image/png;base64,"]] * 2}, "two descriptors"),
        ({"images": [[HASH, [], "data:image/png;base64,"]]}, "payload"),
        *[({"digest": value}, "'digest' has") for value in (b"", bytes(15))],
        ({"answer": bytes(16)}, "'answer' has 16 bytes; expected 8"),
        ({"finish": "abort"}, "aborted"),
        ({"stop": 0.5}, "'stop' is of type float"),
        *[
            ({"versions": spans}, "'versions'")
            for spans in (["7", 0, 2], ["7", 1, 3], ["7", 0, 4], [7, 0, 3], ["7", -1, 3])
        ],
        ({"policy": ["7", 8]}, "'policy'"),
        *[({"cached": number}, "'cached'") for number in (-1, 2**31, math.inf)],
        *[({"tools": tools}, "tools") for tools in ([1], [{"parameters": np.zeros(3)}], [{"name": b""}])],
        *[
            ({"experts": {"first": first, "rows": rows}}, "'experts' has|'first' is|'rows'")
            for first, rows in (
                *((0, np.array(3)), (0, np.zeros((3, 2, 2), np.float32)), (-1, np.zeros((3, 2, 2), np.uint8))),
                *((2**40, np.zeros((3, 2, 2), np.uint8)), (0, np.zeros((152, 1, 1), np.uint8)), (0, [1])),
            )
        ],
        *[
            ({"masks": {"ids": np.arange(3, dtype=np.int32), "lengths": np.array(lengths, np.int32)}}, "'masks' has")
            for lengths in ([3], [1, 1, 2], [4, -1, 0])
        ],
        *[({"echo": value}, "'echo' is of type|not a valid Echo") for value in (1, "", "tolerant")],
        *[({"constrained": value}, "'constrained' is of type") for value in (1, "yes")],
        *[({"source": "refused", "end_token": value}, "'end_token' is of type") for value in (1, "yes")],
        ({"source": "first", "end_token": True}, "'end_token' is set, but 'source' is 'first'"),
        ({"source": "refused", "earlier_text": 1}, "'earlier_text' is of type"),
        ({"source": "bridge", "earlier_text": True}, "'earlier_text' is set, but 'source' is 'bridge'"),
        ({"source": "refused", "end_token": True, "earlier_text": True}, "'end_token' and 'earlier_text' are set"),
        *[({"timings": {"engine": number}}, "microseconds for 'engine'") for number in (-1, 0.5, 2**63)],
        (messages(pixel_values=[1.0]), "pixel_values"),
        (messages(novelty=np.zeros(3)), "ndarray"),
        (messages(name=3), "'name' of a message"),
        (messages(tool_calls=CALL), "'tool_calls' of a message must be"),
        (messages(tool_calls=[{**CALL, "function": "look"}]), "'tool_calls' of a message must be"),
        (messages(content={"a": 1}), "the content of a message is of type dict"),
        (messages(content=[3]), "a part of a message"),
        (messages(content=[b"short"]), "bytes of an image's hash"),
        (messages(content=[{"type": "image", "hash": ["a"]}]), r"messages\.content\.hash"),
    ],
)
def test_an_invalid_step_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        step(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"reward": reward}, "'reward' is") for reward in (math.nan, math.inf, -math.inf, 1e31, 1)],
        ({"reward": None}, "the reward is None"),
        ({"status": "failed"}, "the reward is 0.75"),
        *[({"metrics": {"m": value}}, "the metric 'm' is") for value in (math.nan, math.inf, "1", True)],
        ({"error": {"type": ["a"], "message": "b"}}, "'error' contains"),
        ({"status": "truncated"}, "'truncated' is not a valid RolloutStatus"),
        ({"limit": "steps"}, "'steps' is not a valid RolloutLimit"),
        ({"limit": 1}, "'limit' is of type int"),
        *[({"rewards": {"a": pair}}, "'rewards.a' is") for pair in ([math.nan, 1.0], [1.0, 1e31], [1, 1.0])],
        *[
            ({"rewards": {"a": pair}}, "expected a list of its value and its weight")
            for pair in (1.0, [1.0], [1.0, 1.0, 1.0])
        ],
        *[
            ({"turn_rewards": pairs}, "expected pairs of a turn")
            for pairs in ([0], [-1, 1.0], [0.0, 1.0], [2**31, 1.0])
        ],
        *[({"turn_rewards": pairs}, "'turn_rewards.0' is") for pairs in ([0, math.inf], [0, 1e31], [0, 1])],
        *[
            ({"turn_rewards": pairs}, "one is out of order or occurs twice")
            for pairs in ([1, 1.0, 0, 1.0], [1, 1.0, 1, 1.0])
        ],
        *[({"unreceived_turns": turns}, "'unreceived_turns' begins with") for turns in ([-1], [2**31], [0.0], [True])],
        *[
            ({"unreceived_turns": turns}, "the numbers of 'unreceived_turns' must rise, but one is out of order")
            for turns in ([1, 0], [1, 1])
        ],
        *[({"root_kinds": {kind: [0]}}, "'root_kinds' has the kind") for kind in ("main", "title", "")],
        *[
            ({"root_kinds": {"auxiliary": roots}}, "'root_kinds.auxiliary' begins with")
            for roots in (0, [-1], [2**31], ["0"])
        ],
        ({"root_kinds": {"subagent": [3, 3]}}, "the numbers of 'root_kinds.subagent' must rise"),
        ({"root_kinds": {"auxiliary": [0, 3], "subagent": [3]}}, "'root_kinds' has two kinds for the root 3"),
        ({"status": "failed", "reward": None, "turn_rewards": [0, 1.0]}, "has named rewards or rewards of turns"),
        *[({"steps": number}, "'steps' is") for number in (-1, 2**31)],
        ({"digest": b""}, "'digest' has 0 bytes"),
        *[({"seconds": value}, "'seconds' is") for value in (-1.0, math.nan, math.inf)],
    ],
)
def test_an_invalid_end_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        finished(**changes)


def test_names_in_tools_and_arguments_are_not_restricted() -> None:
    words = {"type": "array", "kind": "tensor", "dtype": "f", "shape": [1], "pixel_values": [0.5]}
    call = {**CALL, "function": {"name": "look", "arguments": words}}
    kept = step(**messages(tool_calls=[call]), tools=[{"type": "function", "function": {"parameters": words}}])
    assert kept.tools[0]["function"]["parameters"] == words
    assert kept.nodes[-1].message["tool_calls"] == [call]


def test_an_array_in_an_unknown_field_of_a_newer_version_is_kept() -> None:
    assert isinstance(finished(schema=102, novelty=np.zeros(3)).extra["novelty"], np.ndarray)


def test_text_beyond_ascii_is_accepted() -> None:
    record = finished(error={"type": "é", "message": "\ud7ff 😀"})
    assert isinstance(record, RolloutFinished)


@pytest.mark.parametrize("tag", ["a/b/c#1.\ud83d", "a/b/\ud83d#1.2", "a/b/c#" + "9" * 5000 + ".1", "a/b/c#²."])
def test_a_tag_in_another_form_has_no_header(tag: str) -> None:
    assert header_from_tag(tag, "group") is None
