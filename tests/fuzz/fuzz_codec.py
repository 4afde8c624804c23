"""Random and mutated byte strings into the decoder: a value or a named error, never another, never much memory.

    python tests/fuzz/fuzz_codec.py [COUNT] [SEED]

Prints how many strings gave a value and how many each error, and the most memory that decoding one ever took.
"""

import dataclasses
import random
import sys
import tracemalloc
from collections import Counter
from enum import Enum

import numpy as np

from transports.codec import decode, encode, register_type
from transports.errors import CodecError

MEMORY_LIMIT = 100 << 20


@register_type("fuzz.Colour")
class Colour(Enum):
    RED = 1


@register_type("fuzz.Point")
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    colour: Colour


def seeds() -> list[list[bytes]]:
    """Records as the codec writes them, to be damaged."""
    values = [
        {"schema": 1, "ids": np.arange(50, dtype=np.int32), "text": "é" * 30, "none": None, "f": 0.5, "t": (1, (2,))},
        [Point(3, Colour.RED), {"nested": [[[[{"deep": [1] * 20}]]]]}],
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


def main() -> int:
    count, seed = (int(argument) for argument in [*sys.argv[1:], "100000", "1"][:2])
    chance = random.Random(seed)
    written = seeds()
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    peak = 0
    for number in range(count):
        random_bytes = [chance.randbytes(chance.randint(0, 400))]
        frames = random_bytes if number % 2 else mutate(chance, chance.choice(written))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            decode(frames)
            outcomes["a value"] += 1
        except CodecError as error:
            outcomes[type(error).__name__] += 1
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    print(", ".join(f"{name} {times}" for name, times in outcomes.most_common()))
    print(f"{count} strings, at most {peak / (1 << 20):.2f} MB for one")
    return int(peak > MEMORY_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
