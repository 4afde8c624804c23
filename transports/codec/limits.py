"""The limits of a record, and a check of its head that runs before any object is created.

A few bytes of msgpack can make a decoder use gigabytes. The start of an array may say that four billion elements
follow, and a megabyte of empty maps becomes seventy megabytes of objects. So `check_structure` first skips over the
head, which needs no memory. It checks that all elements are there and that they are not too many. The depth is checked
later, after the objects are created.
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
"""For each first byte, the size of the value in bytes. A list or a map counts without its elements.

A value with any other first byte takes one byte.
"""
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXT_LENGTH_WIDTH = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def check_structure(head: bytes) -> None:
    """Raise CodecError if a head is incomplete, if bytes follow it, or if it has too many values."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(head))
    unpacker.feed(head)
    try:
        unpacker.skip()
    except msgpack.StackError:
        raise CodecLimitExceeded(f"the record is nested more than {MAX_DEPTH} levels deep; make it flatter") from None
    except msgpack.FormatError:
        raise MalformedRecord("the head frame has a byte that msgpack does not use") from None
    except (msgpack.OutOfData, ValueError):
        raise MalformedRecord("the head frame is cut off") from None
    trailing = len(head) - unpacker.tell()
    if trailing:
        raise MalformedRecord(f"{trailing} unexpected bytes follow the value in the head frame")
    # Each value takes at least one byte, so only a long head can have too many values.
    if len(head) > MAX_VALUES and _has_more_values(head, MAX_VALUES):
        raise CodecLimitExceeded(f"the record has more than {MAX_VALUES} values; send numbers as numpy arrays")


def _has_more_values(head: bytes, limit: int) -> bool:
    """Whether a complete head has more than `limit` values. Nested values simply follow each other in the bytes."""
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
