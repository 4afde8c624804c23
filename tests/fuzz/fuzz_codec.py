"""Decodes random and mutated bytes: the result is a value or a named error, and it takes little memory.

python tests/fuzz/fuzz_codec.py --count 20000 --seed 0
"""

import functools
import random
import sys

import numpy as np

from tests.fuzz.fuzzing import fuzz
from transports.codec import decode, encode
from transports.errors import CodecError


@functools.cache
def seeds() -> list[list[bytes]]:
    """Return encoded records, which `mutate` damages."""
    values = [
        {"schema": 1, "ids": np.arange(50, dtype=np.int32), "text": "é" * 30, "none": None, "f": 0.5, "t": [1, [2]]},
        [3, {"nested": [[[[{"deep": [1] * 20}]]]]}],
        {"blob": bytes(40_000), "text": "x" * 40_000, "array": np.zeros((100, 100), np.float32)},
    ]
    return [[bytes(frame) for frame in encode(value)] for value in values]


def mutate(chance: random.Random, frames: list[bytes]) -> list[bytes]:
    head = bytearray(frames[0])
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(head) + 1)
        choice = chance.randrange(4)
        if choice == 0:
            head[at : at + 1] = chance.randbytes(1)
        elif choice == 1:
            head[at:at] = chance.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91"]
            )
        elif choice == 2:
            del head[at : at + chance.randint(1, 8)]
        else:
            head[at:at] = bytes([0x91]) * chance.randint(1, 2000)
    others = frames[1:] if chance.random() < 0.8 else [frame[: chance.randint(0, 50)] for frame in frames[1:]]
    return [bytes(head), *others]


def make(chance: random.Random) -> list[bytes]:
    if chance.random() < 0.5:
        return [chance.randbytes(chance.randint(0, 400))]
    return mutate(chance, chance.choice(seeds()))


def attempt(frames: list[bytes]) -> str:
    decode(frames)
    return "a value"


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(CodecError,)))
