"""Limits of a record, and a check of the structure of its head before any object is built.

A few bytes of msgpack can ask for gigabytes. An array header may claim four billion elements, and a megabyte of empty
maps becomes seventy megabytes of objects. So `check_structure` first skips over the head, which takes no memory. All
claimed elements must be there, and their number is limited. The depth is checked after they are built.
"""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]

from transports.errors import CodecLimitExceeded, MalformedRecord

MAX_RECORD_BYTES = 1 << 30
MAX_HEAD_BYTES = 16 << 20
MAX_FRAMES = 4096
MAX_DEPTH = 64
MAX_VALUES = 1 << 19

_FIXED_EXT_BYTES = {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
_FIXED_BYTES = {
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1, 0xDC, 0xDE), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2, 0xDD, 0xDF), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9),
    **_FIXED_EXT_BYTES,
    **{0xA0 + length: 1 + length for length in range(32)},
}
"""The bytes that a value takes, by its first byte. A list or a map counts without its elements. All others take one."""
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXT_LENGTH_WIDTH = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def check_structure(head: bytes) -> None:
    """Raise CodecError if a head is cut off, has trailing bytes, or has too many values."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(head))
    unpacker.feed(head)
    try:
        unpacker.skip()
    except msgpack.StackError:
        raise CodecLimitExceeded(f"the record nests deeper than {MAX_DEPTH} levels") from None
    except msgpack.FormatError:
        raise MalformedRecord("the head frame holds a byte that msgpack does not use") from None
    except (msgpack.OutOfData, ValueError):
        raise MalformedRecord("the head frame is cut off") from None
    trailing = len(head) - unpacker.tell()
    if trailing:
        raise MalformedRecord(f"{trailing} bytes trail the head frame")
    # Each value takes at least one byte, so only a long head must be counted.
    if len(head) > MAX_VALUES and _has_more_values(head, MAX_VALUES):
        raise CodecLimitExceeded(f"the record has more than {MAX_VALUES} values; send numbers as numpy arrays")


def _has_more_values(head: bytes, limit: int) -> bool:
    """Whether a complete head has more than `limit` values. In the bytes, nested values follow each other."""
    offset, end = 0, len(head)
    for _ in range(limit):
        first_byte = head[offset]
        if first_byte in _LENGTH_WIDTH:
            width = _LENGTH_WIDTH[first_byte]
            offset += 1 + width + int.from_bytes(head[offset + 1 : offset + 1 + width])
        elif first_byte in _EXT_LENGTH_WIDTH:
            width = _EXT_LENGTH_WIDTH[first_byte]
            offset += 2 + width + int.from_bytes(head[offset + 1 : offset + 1 + width])
        else:
            offset += _FIXED_BYTES.get(first_byte, 1)
        if offset >= end:
            return False
    return True
