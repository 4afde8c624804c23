"""What a record may cost before anything of it is built: limits, and a look at the bare structure of its head.

A few msgpack bytes can ask for gigabytes: an array header claims four billion elements, a thousand headers nest, a
megabyte of empty maps becomes seventy of objects. So the head is skipped over first, which allocates nothing: every
claimed element must be there, and there are only so many. How deep they nest is seen once they are built.
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
"""What a value takes by its first byte, and a list or a map without its elements; all others take one byte."""
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXT_LENGTH_WIDTH = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def check_structure(head: bytes) -> None:
    """Refuse a head that is cut off, trails bytes, or holds too many values."""
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
    # Each value takes a byte or more, so that only a long head needs to be counted.
    if len(head) > MAX_VALUES and _has_more_values(head, MAX_VALUES):
        raise CodecLimitExceeded(f"the record has more than {MAX_VALUES} values; send numbers as numpy arrays")


def _has_more_values(head: bytes, limit: int) -> bool:
    """Whether a head that is whole holds more than so many; they follow each other, however they nest."""
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
