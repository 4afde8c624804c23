"""Records on the wire: old files stay readable, nothing is sent twice, and damage is refused."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from renderers_adapter.pool import shared_pool
from rollout.images import ImagePolicy, prepare_images
from rollout.records.conversations import RootKind
from rollout.records.evidence import RoutedExperts
from rollout.records.kinds import PromptSource, RecordError, RolloutFinished, Step
from rollout.records.wire import SCHEMA, decode_queue_record, decode_record, encode_record
from tests.programs.engine_double import ScriptedAnswer
from tests.programs.in_process import InProcessRollout
from tests.unit.records.changed import decode_changed
from tests.unit.records.golden.records import DIRECTORY, GOLDEN_FRAMES, RECORDS, STATUS, step
from transports.codec import decode

TURNS = 200


def comparable(value: Any) -> Any:
    """Return a record with its arrays as lists, so that `==` compares it."""
    if dataclasses.is_dataclass(value):
        return {field.name: comparable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.tolist()
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items()}
    return [comparable(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("file", sorted(DIRECTORY.glob("*.msgpack")), ids=lambda file: file.name)
def test_a_golden_file_of_any_version_is_read_correctly(file: Path) -> None:
    expected = {**RECORDS, "launch_status": STATUS}[file.name.partition(".")[0]]
    assert comparable(decode_queue_record([file.read_bytes()])) == comparable(expected)


@pytest.mark.parametrize("name", GOLDEN_FRAMES)
def test_every_kind_of_record_of_this_version_has_a_golden_file(name: str) -> None:
    assert [(DIRECTORY / f"{name}.{SCHEMA}.msgpack").read_bytes()] == list(GOLDEN_FRAMES[name])


@pytest.mark.parametrize("name", RECORDS)
def test_fields_of_a_newer_minor_version_are_kept_and_sent_again(name: str) -> None:
    kept = decode_changed(RECORDS[name], schema=SCHEMA + 1, novelty={"a": 1})
    assert kept.extra == {"novelty": {"a": 1}}
    assert decode(encode_record(kept))["novelty"] == {"a": 1}


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"schema": 200}, r"the schema 2\.00, but this program reads 1\.x"),
        ({"schema": "1"}, "'schema' is of type str"),
        ({"kind": "tantrum"}, "unknown kind 'tantrum'"),
        ({"of": ["run", "env", "group", "rollout", 1]}, "malformed"),
        ({"of": ["run", "env", "group", "rollout", "1", 2]}, "header of the record is not valid: .* attempt is '1'"),
        ({"ids": np.zeros(3, np.int32)}, "2 messages and 3 token ids"),
        ({"ids": np.zeros(10, np.float32)}, "'ids' is a float32 array"),
        ({"lengths": [11, -1]}, "'lengths' is"),
        ({"logprobs": np.zeros(9, np.float32)}, "5 tokens but 9 log-probs"),
        ({"places": [0, [1, 64]]}, "a message has 2 images, but 'places' has positions for 1"),
        ({"images": [[b"12345678", {"pixel_values": [0.5]}, "data:image/png;base64,"]]}, "pixel_values"),
        ({"images": [[b"12345678", {"grid": np.zeros(3)}, "data:image/png;base64,"]]}, "images"),
        ({"images": [["name", {}, "data:image/png;base64,"]]}, "malformed"),
        ({"images": [[b"12345678", {}, "file:///etc/passwd"]]}, r"images\.raw_uri must be a data:image"),
        ({"images": [[b"12345678", {}, b"", "/../secret.png"]]}, r"images\.raw_image_id must match"),
        ({"places": [0, [math.inf, 64, 3, 80]]}, "an image is at inf"),
        ({"digest": None}, "has no field 'digest'"),
        ({"versions": ["7", 0]}, "malformed"),
        ({"messages": [{"role": "user"}] * 2}, "malformed"),
        ({"messages": [{"content": "a"}] * 2}, "malformed"),
        ({"messages": [{"role": "critic", "content": "a"}] * 2}, "a message has the role 'critic'"),
        ({"answer": "8 bytes!"}, "'answer' is of type str"),
    ],
)
def test_a_damaged_step_is_refused_with_its_reason(changes: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(RecordError, match=expected_text):
        decode_changed(step(), **changes)


@pytest.mark.parametrize(
    "layout",
    [
        {"family": "qwen_vl"},
        {"family": "qwen_vl", "fingerprint": "../secret"},
        {"family": "qwen_vl", "fingerprint": "0" * 32, "payload": {"pixel_values": 1}},
        {"family": [], "fingerprint": "0" * 32},
    ],
)
def test_a_start_whose_images_cannot_be_described_is_refused(layout: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="rollout_started record is malformed"):
        decode_changed(RECORDS["rollout_started"], layout=layout)


@given(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=8))
def test_a_torn_record_raises_only_a_record_error(start: int, end: int, instead: bytes) -> None:
    (frame,) = encode_record(step())
    torn = bytes(frame)[:start] + instead + bytes(frame)[end:]
    try:
        assert isinstance(decode_record([torn]), Step)
    except RecordError:
        assert torn != bytes(frame)


@pytest.mark.parametrize("item", [{"payload": {"pixel_values": 1}, "raw_uri": "data:"}, {"payload": {}}, {}])
def test_a_step_with_a_bad_descriptor_is_not_sent(item: dict[str, Any]) -> None:
    (mm_hash, *_) = step().images
    with pytest.raises(RecordError):
        encode_record(replace(step(), images={mm_hash: item}))


def test_a_step_with_a_sampled_message_before_its_answer_is_not_sent() -> None:
    asked, said = step().nodes
    with pytest.raises(RecordError, match="a node before the last one"):
        encode_record(replace(step(), nodes=(said, asked)))


@pytest.mark.parametrize(("key", "value"), [("finish", "content_filter"), ("source", "guess"), ("finish", 3)])
def test_a_step_with_an_unknown_reason_is_malformed(key: str, value: Any) -> None:
    with pytest.raises(RecordError, match=r"malformed|expected str"):
        decode_changed(step(), **{key: value})


def test_reasons_are_enums_before_and_after_the_queue() -> None:
    decoded = decode_record(encode_record(replace(step(), prompt_source=PromptSource.RETRY)))
    assert isinstance(decoded, Step)
    assert decoded.prompt_source is PromptSource.RETRY
    assert decoded.finish_reason is step().finish_reason


def test_a_reader_of_an_older_version_reads_another_end_token_as_a_refused_bridge() -> None:
    wire = decode(encode_record(RECORDS["other_ended_step"]))
    assert wire["source"] == "refused"
    assert wire["end_token"] is True


def test_a_reader_of_an_older_version_reads_changed_earlier_text_as_a_refused_bridge() -> None:
    wire = decode(encode_record(RECORDS["looking_back_step"]))
    assert wire["source"] == "refused"
    assert wire["earlier_text"] is True


def test_the_usual_values_of_a_turn_and_main_roots_are_not_sent() -> None:
    usual, finished = RECORDS["usual_step"], RECORDS["rollout_finished"]
    assert isinstance(finished, RolloutFinished)
    main = replace(finished, root_kinds={0: RootKind.MAIN})
    assert decode(encode_record(usual)).keys().isdisjoint({"echo", "constrained"})
    assert decode(encode_record(main)).keys().isdisjoint({"unreceived_turns", "root_kinds"})


def test_experts_of_a_later_turn_keep_their_first_token() -> None:
    sent = replace(step(), routed_experts=RoutedExperts(6, np.arange(12, dtype=np.uint8).reshape(3, 2, 2)))
    assert comparable(decode_record(encode_record(sent))) == comparable(sent)


def test_an_oversized_record_is_neither_sent_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = encode_record(step())
    monkeypatch.setattr("transports.codec.frames.MAX_HEAD_BYTES", 100)
    with pytest.raises(RecordError, match="cannot be encoded"):
        encode_record(step())
    with pytest.raises(RecordError, match="cannot be decoded"):
        decode_record(frames)


@pytest.mark.parametrize("mode", ["offload", "inline"])
async def test_a_long_rollout_sends_everything_once(
    tmp_path: Path, tiny_model: Path, mode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 turns with an image each need at most 1.15 times the least number of bytes."""
    pool = shared_pool(tiny_model, "qwen3-vl")
    assert pool.geometry is not None
    parts = [{"type": "image", "image": Image.new("RGB", (32, 32), (number, 0, 0))} for number in range(TURNS)]
    prepared = prepare_images([{"role": "user", "content": parts}], ImagePolicy(mode, tmp_path)).images
    tokens = pool.geometry.layout(width=32, height=32).tokens
    played = InProcessRollout(
        pool, tmp_path, {image.asset.url: (image.asset.mm_hash, tokens) for image in prepared}, mode
    )
    await played.begin()
    conversation: list[dict[str, Any]] = []
    answer = (*pool.tokenizer.encode("red"), pool.stop_token_ids[0])
    for part in parts:
        question = {"type": "text", "text": "What is the colour of this square?"}
        conversation.append({"role": "user", "content": [part, question]})
        played.engine.scripted_answers = [ScriptedAnswer(answer)]
        conversation.append((await played.session.chat(conversation)).message)
    trajectory = await played.finish()

    ids = sum(len(node.run.ids) for node in trajectory.nodes)
    logprobs = sum(len(node.run.logprobs) for node in trajectory.nodes)
    text = sum(len(said.encode()) for node in trajectory.nodes for said in texts(node.message))
    inline = sum(len(image.asset.url) for image in prepared) if mode == "inline" else 0
    needed = 4 * ids + 4 * logprobs + text + 400 * TURNS + inline
    with capsys.disabled():
        print(
            f"\nbytes of a rollout of {TURNS} turns and images, {mode}: {played.sink.bytes / needed:.3f} of the least"
        )
    assert played.sink.bytes <= 1.15 * needed
    assert sum(len(recorded.images) for recorded in trajectory.steps) == TURNS


def texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
