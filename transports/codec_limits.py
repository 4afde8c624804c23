"""What a record may cost before anything of it is built: limits, and a look at the bare structure of its head.

A few msgpack bytes can ask for gigabytes: an array header claims four billion elements, a thousand headers nest, a
megabyte of empty maps becomes seventy of objects. So the structure is walked first, allocating nothing: every claimed
element must be there, and depth and count are bounded.
"""

from __future__ import annotations

from transports.errors import CodecLimitExceeded, MalformedRecord

MAX_RECORD_BYTES = 1 << 30
MAX_HEAD_BYTES = 16 << 20
MAX_FRAMES = 4096
MAX_DEPTH = 64
MAX_VALUES = 1 << 19

_FIXED_BYTES = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 1),
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9),
}
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXT_LENGTH_WIDTH = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXT_BYTES = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_COUNT_WIDTH = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_MAPS = (0xDE, 0xDF)


def check_structure(head: bytes, extensions: frozenset[int]) -> None:
    """Refuse a head that is cut off, trails bytes, uses foreign extensions, or passes a limit."""
    end, at, values = len(head), 0, 0
    missing = [1]
    while missing:
        if not missing[-1]:
            missing.pop()
            continue
        missing[-1] -= 1
        values += 1
        if values > MAX_VALUES:
            raise CodecLimitExceeded(f"the record has more than {MAX_VALUES} values; send numbers as numpy arrays")
        if at >= end:
            raise MalformedRecord("the head frame is cut off")
        first = head[at]
        if first < 0x80 or first >= 0xE0:
            at += 1
        elif 0xA0 <= first < 0xC0:
            at += 1 + (first & 0x1F)
        elif first < 0xA0 or first in _COUNT_WIDTH:
            if len(missing) > MAX_DEPTH:
                raise CodecLimitExceeded(f"the record nests deeper than {MAX_DEPTH} levels")
            if first < 0xA0:
                count, is_map = first & 0x0F, first < 0x90
                at += 1
            else:
                width, is_map = _COUNT_WIDTH[first], first in _MAPS
                count = int.from_bytes(head[at + 1 : at + 1 + width])
                at += 1 + width
            missing.append(2 * count if is_map else count)
        else:
            at += _leaf_bytes(head, at, first, extensions)
    if at != end:
        raise MalformedRecord("the head frame is cut off" if at > end else f"{end - at} bytes trail the head frame")


def _leaf_bytes(head: bytes, at: int, first: int, extensions: frozenset[int]) -> int:
    if first in _FIXED_BYTES:
        return _FIXED_BYTES[first]
    if first in _LENGTH_WIDTH:
        width = _LENGTH_WIDTH[first]
        return 1 + width + int.from_bytes(head[at + 1 : at + 1 + width])
    if first in _EXT_LENGTH_WIDTH:
        width = _EXT_LENGTH_WIDTH[first]
        length = int.from_bytes(head[at + 1 : at + 1 + width])
    elif first in _FIXED_EXT_BYTES:
        width, length = 0, _FIXED_EXT_BYTES[first]
    else:
        raise MalformedRecord(f"byte {at} of the head frame is {first:#x}, which msgpack does not use")
    code = head[at + 1 + width : at + 2 + width]
    if code and code[0] not in extensions:
        raise MalformedRecord(f"the head frame uses the msgpack extension {code[0]}, which this codec does not write")
    return 2 + width + length
