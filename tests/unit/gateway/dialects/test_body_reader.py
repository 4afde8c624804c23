"""Bodies are read only from where they differ from an earlier body."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.api_keys import new_key
from rollout.gateway.dialects import reading
from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.body_reader import BodyReader
from rollout.gateway.dialects.reading import KnownItems, parse
from rollout.gateway.dialects.request_body import BLOCK_BYTES, RequestBody

WRONG = "wrong"
"""The item that the reader refuses."""


class Reader:
    """A reader that notes which items it read."""

    def __init__(self) -> None:
        self.read_items: list[Any] = []
        self._reader: BodyReader[Any] = BodyReader("messages", self._read_item)

    def read(self, data: bytes) -> tuple[dict[str, Any], list[Any] | None]:
        """Return the parsed keys and items of a body."""
        fields, items = self._reader.read(RequestBody(data))
        return {name: orjson.loads(memoryview(raw)) for name, raw in fields.items()}, items

    def _read_item(self, raw: msgspec.Raw, place: str) -> Any:
        item = parse(raw, place)
        if item == WRONG:
            raise RequestRefused(f"{place} is wrong.", parameter=place)
        self.read_items.append(item)
        return item


def body(*items: Any, **fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "messages": list(items), **fields})


def test_only_new_items_are_read_again() -> None:
    reader = Reader()
    reader.read(body("a", "b"))
    fields, items = reader.read(body("a", "b", "c", "d", tools=[1]))
    assert (fields, items) == ({"model": "m", "tools": [1]}, ["a", "b", "c", "d"])
    assert reader.read_items == ["a", "b", "c", "d"]


def test_the_same_body_is_read_without_its_items() -> None:
    reader = Reader()
    assert reader.read(body("a", "b")) == reader.read(body("a", "b")) == ({"model": "m"}, ["a", "b"])
    assert reader.read_items == ["a", "b"]


def test_conversations_that_alternate_are_both_known() -> None:
    reader = Reader()
    for text in ("a", "x", "b", "y"):
        first = "a" if text in "ab" else "x"
        reader.read(body(first, *([text] if text != first else [])))
    assert reader.read_items == ["a", "x", "b", "y"]


def test_a_changed_item_is_read_again() -> None:
    reader = Reader()
    reader.read(body("a", "b"))
    assert reader.read(body("a", "B", "c"))[1] == ["a", "B", "c"]


def test_a_longer_item_with_a_known_beginning_is_read_again() -> None:
    reader = Reader()
    reader.read(b'{"messages":[1,2]}')
    assert reader.read(b'{"messages":[1,23,4]}')[1] == [1, 23, 4]


def test_a_change_deep_in_a_large_body_is_seen() -> None:
    large = "x" * (3 * BLOCK_BYTES)
    reader = Reader()
    reader.read(body(large, "a"))
    changed = large[:BLOCK_BYTES] + "y" + large[BLOCK_BYTES + 1 :]
    assert reader.read(body(changed, "a", "b"))[1] == [changed, "a", "b"]


def test_an_item_that_cannot_be_read_does_not_change_what_is_known() -> None:
    reader = Reader()
    reader.read(body("a"))
    with pytest.raises(RequestRefused, match=r"messages\[1\]"):
        reader.read(body("a", WRONG))
    assert reader.read(body("a", "b"))[1] == ["a", "b"]


def test_the_place_of_an_error_counts_from_the_start_of_the_body() -> None:
    reader = Reader()
    reader.read(body("a"))
    with pytest.raises(RequestRefused, match=r"byte 29"):
        reader.read(b'{"model":"m","messages":["a",NaN]}')


def test_a_body_without_a_list_keeps_its_value() -> None:
    assert Reader().read(b'{"messages":"a"}') == ({"messages": "a"}, None)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"messages":[1', b'{"messages":[1]', b"\xff"])
def test_a_body_that_is_no_object_is_refused(data: bytes) -> None:
    reader = Reader()
    reader.read(b'{"messages":[1]}')
    with pytest.raises(RequestRefused):
        reader.read(data)


def test_keys_of_endpoints_are_in_nothing_that_is_read() -> None:
    key, reader = new_key(), Reader()
    reader.read(body("a", user=key))
    fields, items = reader.read(body("a", f"my key is {key}", user=key))
    assert key not in str((fields, items))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.lists(values, max_size=4), min_size=1, max_size=6), st.booleans(), st.data())
def test_a_sequence_of_bodies_is_read_like_each_alone(
    additions: list[list[Any]], is_pretty: bool, data: st.DataObject
) -> None:
    reader, items = Reader(), list[Any]()
    for added in additions:
        items = [*items[: data.draw(st.integers(0, len(items)))], *added] if data.draw(st.booleans()) else items + added
        written = orjson.dumps(
            {"a": 1, "messages": items, "b": added}, option=orjson.OPT_INDENT_2 if is_pretty else None
        )
        assert reader.read(written) == ({"a": 1, "b": added}, items)


def test_a_program_that_sends_ever_new_large_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MAX_NEW_BYTES", 10_000)
    items = KnownItems(lambda item, place: item)
    known = msgspec.Raw(orjson.dumps("x" * 5_000))
    for _ in range(5):
        items.read(known, "messages[0]")
    with pytest.raises(RequestRefused, match="in a loop"):
        items.read(msgspec.Raw(orjson.dumps("y" * 5_000)), "messages[1]")
    assert items.read(known, "messages[0]") == "x" * 5_000
