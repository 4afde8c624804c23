"""Entries of a Redis stream, read without a server: records, and entries of other programs."""

import pytest

from transports.redis_streams.entries import (
    ForeignEntry,
    id_of_position,
    join_frames,
    position_of_mark,
    read_dead_letter,
    read_entry,
)

ID = b"1700000000000-7"
FIELDS = {b"k": b"key", b"t": b"tag", b"d": join_frames((b"one", b"", b"two"))}


@pytest.mark.parametrize("fields", [FIELDS, [part for field in FIELDS.items() for part in field]])
def test_an_entry_is_read_from_a_mapping_and_from_a_list(fields: dict[bytes, bytes] | list[bytes]) -> None:
    entry = read_entry(ID, fields)
    assert (entry.key, entry.tag, [bytes(frame) for frame in entry.frames]) == ("key", "tag", [b"one", b"", b"two"])
    assert id_of_position(entry.position) == ID.decode()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({b"k": None}, "no field 'k'"),
        ({b"d": None, b"garbage": b"1"}, "no field 'd'"),
        ({b"k": b"\xff"}, "utf-8"),
        ({b"t": b"\xff"}, "utf-8"),
        ({b"d": b""}, "frames are damaged"),
        ({b"d": b"\xff\xff\xff\xff"}, "frames are damaged"),
        ({b"d": b"\0\0\0\0"}, "frames are damaged"),
        ({b"d": FIELDS[b"d"][:-1]}, "frames are damaged"),
        ({b"d": FIELDS[b"d"] + b"x"}, "frames are damaged"),
    ],
)
def test_an_entry_of_another_program_is_refused_with_reason_and_content(
    changed: dict[bytes, bytes | None], reason: str
) -> None:
    fields = {name: value for name, value in (FIELDS | changed).items() if value is not None}
    with pytest.raises(ForeignEntry, match=f"not a record of this queue: .*{reason}") as foreign:
        read_entry(ID, fields)
    assert foreign.value.tag == "foreign entry 1700000000000-7"
    assert foreign.value.frames == tuple(part for field in fields.items() for part in field)


@pytest.mark.parametrize("id_", [b"1-1048576", b"8796093022208-0", b"18446744073709551615-18446744073709551615"])
def test_an_id_without_a_position_is_refused_but_a_mark_can_have_it(id_: bytes) -> None:
    with pytest.raises(ForeignEntry, match="a server would not give it this id"):
        read_entry(id_, FIELDS)
    assert position_of_mark(id_) > 0


def test_a_foreign_entry_among_the_dead_letters_can_be_seen() -> None:
    letter = read_dead_letter(ID, [b"garbage", b"1"])
    assert (letter.id, letter.frames) == (ID.decode(), (b"garbage", b"1"))
    assert letter.reason == "not a record of this queue: it has no field 'r'"
