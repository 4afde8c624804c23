"""References on the wire: both versions, the allowed fields, and that every wrong text is a named error."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.refs import RawMMRef, RefError, format_ref, parse_ref

FIELDS: dict[str, Any] = {
    "run_id": "run-1",
    "family": "qwen_vl",
    "fingerprint": "0123456789abcdef" * 2,
    "modality": "image",
    "mm_hash": "ab" * 16,
    "payload": {"image_grid_thw": [[1, 4, 6]]},
    "raw_image_id": "a.png",
}

names = st.text("abcXYZ019_.-", min_size=1, max_size=20)
payloads = st.dictionaries(
    st.text(max_size=8).filter(lambda key: "pixel" not in key),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
refs = st.builds(
    RawMMRef,
    run_id=names,
    family=names,
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=64),
    modality=names,
    mm_hash=st.text("0123456789abcdef", min_size=16, max_size=128),
    payload=payloads,
    raw_image_id=names,
    raw_uri=st.none() | st.just("data:image/png;base64,AAAA"),
)


def encoded(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def v2(**changes: str) -> str:
    fields = {**FIELDS, "payload": encoded(FIELDS["payload"]), **changes}
    order = ("run_id", "family", "fingerprint", "modality", "mm_hash", "raw_image_id", "payload")
    return ":".join(["mmraw", "v2", *(fields[name] for name in order)])


@given(refs)
def test_a_reference_survives_the_wire(ref: RawMMRef) -> None:
    assert parse_ref(format_ref(ref)) == ref


@given(refs)
def test_both_versions_have_the_same_meaning(ref: RawMMRef) -> None:
    text = v2(
        run_id=ref.run_id,
        family=ref.family,
        fingerprint=ref.fingerprint,
        modality=ref.modality,
        mm_hash=ref.mm_hash,
        raw_image_id=str(ref.raw_image_id),
        payload=encoded(dict(ref.payload)),
    )
    parsed = parse_ref(text)
    assert (parsed.payload, parsed.mm_hash, parsed.raw_image_id) == (ref.payload, ref.mm_hash, ref.raw_image_id)
    assert parsed.raw_uri is None


def test_version_3_is_written_as_compact_sorted_json_without_padding() -> None:
    text = format_ref(RawMMRef(**FIELDS))
    assert text == "mmraw:v3:" + encoded(FIELDS)
    assert "=" not in text


def test_an_inline_reference_has_no_image_id() -> None:
    ref = RawMMRef(**{**FIELDS, "raw_image_id": None, "raw_uri": "data:image/png;base64,AAAA"})
    assert parse_ref(format_ref(ref)) == ref
    assert "raw_image_id" not in json.loads(base64.urlsafe_b64decode(format_ref(ref)[9:] + "=="))


UNSAFE = [
    ("run_id", "a/b"),
    ("run_id", ""),
    ("family", "a b"),
    ("fingerprint", "ABCDEF0123456789"),
    ("fingerprint", "abc"),
    ("fingerprint", "a" * 65),
    ("modality", "image\n"),
    ("mm_hash", "ab"),
    ("mm_hash", "a" * 129),
    ("raw_image_id", "../x"),
]


@pytest.mark.parametrize(("name", "value"), UNSAFE)
def test_an_unsafe_field_is_refused_when_building_and_when_parsing(name: str, value: str) -> None:
    with pytest.raises(RefError, match=name):
        RawMMRef(**{**FIELDS, name: value})
    with pytest.raises(RefError, match=name):
        parse_ref("mmraw:v3:" + encoded({**FIELDS, name: value}))
    with pytest.raises(RefError, match=name):
        parse_ref(v2(**{name: value}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mmraw",
        "mmraw:v1:x",
        "mmraw:v3:",
        "mmraw:v3:AAAA",
        "mmraw:v3:A",
        "mmraw:v3:====",
        "mmraw:v3:ä",
        "mmraw:v3:+/+/",
        "mmraw:v3:" + encoded("[1]"),
        "mmraw:v3:" + encoded("{}"),
        "mmraw:v3:" + encoded("NaN"),
        "mmraw:v3:" + encoded("[" * 100_000),
        "mmraw:v3:" + encoded({**FIELDS, "payload": [1]}),
        "mmraw:v3:" + encoded({**FIELDS, "payload": {"pixel_values": []}}),
        "mmraw:v3:" + encoded({**FIELDS, "raw_image_id": None}),
        "mmraw:v3:" + encoded({**FIELDS, "raw_uri": "file:///etc/passwd"}),
        "mmraw:v3:" + encoded(FIELDS) + "=",
        v2() + ":more",
        v2()[: v2().rindex(":")],
        v2(payload=""),
        v2(payload="{}"),
    ],
)
def test_a_malformed_reference_is_a_named_error(text: str) -> None:
    with pytest.raises(RefError):
        parse_ref(text)


def test_a_number_that_json_cannot_write_is_refused() -> None:
    with pytest.raises(RefError, match="JSON"):
        format_ref(RawMMRef(**{**FIELDS, "payload": {"x": float("nan")}}))


texts = st.text() | st.builds("mmraw:v3:{}".format, st.text()) | st.builds("mmraw:v2:{}".format, st.text())
near_misses = st.builds(
    lambda text, at, with_: text[:at] + with_ + text[at + 1 :],
    st.sampled_from([v2(), format_ref(RawMMRef(**FIELDS))]),
    st.integers(0, 400),
    st.text(max_size=3),
)


@given(texts | near_misses | st.builds(lambda value: "mmraw:v3:" + encoded(value), payloads))
def test_the_parser_raises_only_its_own_error(text: str) -> None:
    try:
        parse_ref(text)
    except RefError:
        return


@pytest.mark.parametrize("value", [None, b"mmraw:v3:", 7])
def test_a_reference_that_is_not_text_is_a_named_error(value: Any) -> None:
    with pytest.raises(RefError, match="must be a string"):
        parse_ref(value)
