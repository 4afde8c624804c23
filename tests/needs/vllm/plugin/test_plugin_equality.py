"""However an image is given, the engine says the same of it: by parts, by references, by tensors, and mixed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

SIZES = ((200, 300), (64, 64), (328, 240), (456, 200), (100, 500), (224, 224))
SERVERS = ["qwen3-vl", "no-cache", "qwen2.5-vl"]


def conversation(wire: Any, write: Callable[[list[Any]], Mapping[str, Any]], salt: str) -> list[Any]:
    """What is said in six turns, with one image more in each."""
    pictures = [wire.picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    return [wire.said({**write(pictures[: turn + 1]), "cache_salt": salt}) for turn in range(len(pictures))]


@pytest.mark.parametrize("inline", [False, True], ids=["offload", "inline"])
@pytest.mark.parametrize("server", SERVERS)
def test_tokens_and_logprobs_are_those_of_content_parts(wire: Any, server: str, inline: bool) -> None:
    there = wire(server)
    by_parts = conversation(there, lambda pictures: there.content_parts(pictures, inline=inline), f"parts-{inline}")
    by_reference = conversation(there, lambda pictures: there.features(pictures, inline=inline), f"refs-{inline}")
    assert by_reference == by_parts
    assert len({tuple(said.logprobs) for said in by_parts}) == len(SIZES)


@pytest.mark.parametrize("server", SERVERS)
def test_references_and_tensors_may_be_mixed(wire: Any, server: str) -> None:
    there = wire(server)
    by_parts = conversation(there, there.content_parts, "parts")

    def write(first: int) -> Callable[[list[Any]], Mapping[str, Any]]:
        def mixed(pictures: list[Any]) -> Mapping[str, Any]:
            made = there.tensors(pictures)
            data = [made[at] if at % 2 == first else picture.ref() for at, picture in enumerate(pictures)]
            written: Mapping[str, Any] = there.features(pictures, data)
            return written

        return mixed

    assert conversation(there, write(0), "mixed-0") == by_parts
    assert conversation(there, write(1), "mixed-1") == by_parts


def test_without_a_salt_what_is_cached_answers_no_differently(wire: Any) -> None:
    there = wire("qwen3-vl")
    pictures = [there.picture(*size) for size in SIZES[:3]]
    said = [
        there.said({**body, "cache_salt": None})
        for body in (
            there.content_parts(pictures),
            there.features(pictures),
            there.features(pictures, there.tensors(pictures)),
            there.content_parts(pictures, inline=True),
            there.features(pictures, inline=True),
        )
    ]
    assert said == [said[0]] * len(said)


def test_an_image_that_comes_twice_is_there_twice(wire: Any) -> None:
    there = wire("qwen3-vl")
    one, other = there.picture(200, 100), there.picture(100, 200)
    pictures = [one, other, one]
    assert there.said(there.features(pictures)) == there.said(there.content_parts(pictures))


def test_a_prompt_of_text_passes_untouched(wire: Any) -> None:
    there = wire("qwen3-vl")
    assert len(there.said(there.body(there.logical(0))).tokens) == 8
