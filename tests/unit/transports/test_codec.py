"""The codec keeps values exactly, does not copy arrays, and refuses everything else."""

import contextlib
import math
from enum import Enum
from typing import Any
from unittest.mock import patch

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.codec import OUT_OF_BAND_BYTES, decode, encode
from transports.codec.arrays import DTYPES
from transports.codec.limits import MAX_DEPTH, MAX_VALUES
from transports.errors import CodecError, CodecLimitExceeded, MalformedRecord, UnsupportedValue

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
)


@given(values)
def test_a_value_is_decoded_unchanged(value: Any) -> None:
    back = decode(encode(value))
    assert back == value
    assert repr(back) == repr(value)


@given(values, st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_head_raises_a_codec_error_or_gives_another_value(value: Any, at: int, noise: bytes) -> None:
    head = bytearray(encode(value)[0])
    head[at % len(head) : at % len(head) + len(noise)] = noise
    with contextlib.suppress(CodecError):
        decode([head])


@given(st.binary(max_size=300))
def test_random_bytes_raise_a_codec_error_or_give_a_value(noise: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode([noise])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4), (100, 100)])
def test_an_array_keeps_dtype_and_shape_and_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    back = decode(encode({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


def test_encode_and_decode_do_not_copy_a_large_array() -> None:
    array = np.arange(100_000, dtype=np.int32)
    frames = encode({"token_ids": array})
    assert len(frames) == 2
    back = decode(frames)["token_ids"]
    assert np.shares_memory(back, array)
    assert not back.flags.writeable


def test_arrays_that_are_not_contiguous_or_little_endian_keep_their_values() -> None:
    array = np.arange(24, dtype=">i4").reshape(4, 6)[:, ::2].T
    assert np.array_equal(decode(encode(array)), array)


def test_large_texts_and_bytes_have_frames_of_their_own() -> None:
    value = {"uri": "ü" * OUT_OF_BAND_BYTES, "png": b"\x89" * OUT_OF_BAND_BYTES, "small": b"s"}
    frames = encode(value)
    assert [memoryview(frame).nbytes for frame in frames[1:]] == [2 * OUT_OF_BAND_BYTES, OUT_OF_BAND_BYTES]
    assert decode([memoryview(frame) for frame in frames]) == value
    assert decode(frames)["png"] is frames[2]


def test_numpy_scalars_become_numbers() -> None:
    back = decode(encode([np.int64(5), np.float32(0.5), np.bool_(True)]))
    assert back == [5, 0.5, True]
    assert [type(number) for number in back] == [int, float, bool]


def test_nan_and_infinity_are_decoded_unchanged() -> None:
    back = decode(encode([math.nan, math.inf, -math.inf]))
    assert math.isnan(back[0])
    assert back[1:] == [math.inf, -math.inf]


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, object()]}, r"\$\.a\[1\]"),
        ({"a": {3: "x"}}, r"keys must be str.*\$\.a"),
        ([1 << 64], r"65 bits.*\$\[0\]"),
        ([np.array([object()])], r"dtype object.*\$\[0\]"),
        ([np.zeros(2, np.complex64)], "complex64"),
        ([np.ma.masked_array([1], [True])], "MaskedArray"),
        ({"x": Colour.RED}, r"Colour; turn it into plain values.*\$\.x"),
        ([{1, 2}], "set"),
    ],
)
def test_an_unsupported_value_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(UnsupportedValue, match=place):
        encode(value)


def test_a_tuple_stays_a_tuple() -> None:
    value = {"point": (1, (2, "x"), [()]), "rest": [(), {"y": (3,)}]}
    assert decode(encode(value)) == value


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_encode_and_decode_limit_the_depth() -> None:
    with pytest.raises(CodecLimitExceeded, match="deeper"):
        encode(nested(MAX_DEPTH + 1))
    with pytest.raises(CodecLimitExceeded, match="deeper"):
        decode([msgpack.packb(nested(MAX_DEPTH + 1))])
    assert decode(encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)


def test_encode_and_decode_limit_the_number_of_values() -> None:
    with pytest.raises(CodecLimitExceeded, match="numpy"):
        encode([0] * MAX_VALUES)
    with pytest.raises(CodecLimitExceeded, match="numpy"):
        decode([msgpack.packb([0] * MAX_VALUES)])


plain = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=400) | st.binary(max_size=400),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=40),
)


def count(value: Any) -> int:
    """Return the number of values: a list or a map counts as one, and so does each element, key and value."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(inner) for inner in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@given(plain)
def test_every_value_of_a_long_head_is_counted(value: Any) -> None:
    frames, number = encode(value), count(value)
    with patch("transports.codec.limits.MAX_VALUES", number):
        decode(frames)
    with patch("transports.codec.limits.MAX_VALUES", number - 1), pytest.raises(CodecLimitExceeded, match="numpy"):
        decode(frames)


@given(values)
def test_every_encoded_value_passes_the_structure_check(value: Any) -> None:
    decode(encode([value, (value,), {"v": value}]))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "cut off"),
        (b"\xdd\xff\xff\xff\xff", "cut off"),
        (b"\xdd\xff\xff\xff\xff" * 60, "cut off"),
        (b"\xc6\xff\xff\xff\xff", "cut off"),
        (b"\x01\x01", "trail"),
        (b"\xc1", "msgpack does not use"),
        (b"\xd6\xff\x00\x00\x00\x00", "timestamp"),
        (b"\xd4\x63\x00", "extension 99"),
        (b"\x81\xc4\x01k\x01", "not a str"),
        (b"\x81\x01\x01", "not what this codec writes"),
        (b"\xa1\xff", "not what this codec writes"),
        (msgpack.packb(msgpack.ExtType(2, bytes(8))), "extension 2, which this codec does not write"),  # was a tensor
        (msgpack.packb(msgpack.ExtType(6, b"")), "mark of a tuple"),
        (msgpack.packb({"x": msgpack.ExtType(6, b"")}), "mark of a tuple"),
        (msgpack.packb([1, msgpack.ExtType(6, b"")]), "mark of a tuple"),
        (msgpack.packb([msgpack.ExtType(6, b"x")]), "extension 6"),
        (msgpack.packb([msgpack.ExtType(7, b"Span")]), "extension 7, which this codec does not write"),  # a dataclass
        (msgpack.packb(msgpack.ExtType(3, b"\x09\x00")), "frame 9"),
        (msgpack.packb(msgpack.ExtType(3, b"\x00")), "damaged"),
        (msgpack.packb(msgpack.ExtType(1, b"\x00")), "cut off"),
        (msgpack.packb(msgpack.ExtType(1, b"\xee\x01" + bytes(14))), "damaged"),
        (msgpack.packb(msgpack.ExtType(1, b"\x03\x02" + bytes(6) + b"\xff" * 16)), "comes with 0 bytes"),
        (msgpack.packb(msgpack.ExtType(1, b"\x03\x02" + bytes(14) + b"\xff" * 8)), "array of shape"),
    ],
)
def test_a_malformed_head_is_refused_with_the_reason(head: bytes, reason: str) -> None:
    with pytest.raises(MalformedRecord, match=reason):
        decode([head])


@pytest.mark.parametrize("value", ["x" * 40_000, b"x" * 40_000, np.zeros(10_000)])
def test_two_values_cannot_share_a_frame(value: Any) -> None:
    """Otherwise a short head could request many copies of a large frame."""
    head, frame = encode([value, "end"])
    (reference, _) = msgpack.unpackb(head)
    with pytest.raises(MalformedRecord, match="frame 1 more than once"):
        decode([msgpack.packb([reference, reference]), frame])


def test_an_array_without_elements_that_is_too_long_is_refused() -> None:
    empty = np.zeros((1 << 40, 0), np.uint8)
    with pytest.raises(UnsupportedValue, match="has no elements and is too long"):
        encode(empty)
    description = encode(np.zeros((2, 0), np.uint8))[0]
    longer = bytes(description).replace((2).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"))
    with pytest.raises(MalformedRecord, match="has no elements and is too long"):
        decode([longer])


def test_a_record_without_frames_or_with_too_many_is_refused() -> None:
    with pytest.raises(MalformedRecord, match="head"):
        decode([])
    with pytest.raises(CodecLimitExceeded, match="frames"):
        decode([b"\xc0"] * 5000)
