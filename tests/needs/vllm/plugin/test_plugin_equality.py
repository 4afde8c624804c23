"""The answer of the engine does not depend on the form of an image: parts, references, tensors, or a mixture."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

SIZES = ((200, 300), (64, 64), (328, 240), (456, 200), (100, 500), (224, 224))
SERVERS = ["qwen3-vl", "no-cache", "qwen2.5-vl"]


def conversation(wire: Any, write: Callable[[list[Any]], Mapping[str, Any]], salt: str) -> list[Any]:
    """Return the answers of six turns, with one more image in each."""
    pictures = [wire.picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    return [wire.answer_of({**write(pictures[: turn + 1]), "cache_salt": salt}) for turn in range(len(pictures))]


@pytest.mark.parametrize("inline", [False, True], ids=["offload", "inline"])
@pytest.mark.parametrize("server", SERVERS)
def test_tokens_and_logprobs_are_those_of_content_parts(wire: Any, server: str, inline: bool) -> None:
    client = wire(server)
    by_parts = conversation(client, lambda pictures: client.content_parts(pictures, inline=inline), f"parts-{inline}")
    by_reference = conversation(client, lambda pictures: client.features(pictures, inline=inline), f"refs-{inline}")
    assert by_reference == by_parts
    assert len({tuple(answer.logprobs) for answer in by_parts}) == len(SIZES)


@pytest.mark.parametrize("server", SERVERS)
def test_references_and_tensors_can_be_mixed(wire: Any, server: str) -> None:
    client = wire(server)
    by_parts = conversation(client, client.content_parts, "parts")

    def write(first: int) -> Callable[[list[Any]], Mapping[str, Any]]:
        def mixed(pictures: list[Any]) -> Mapping[str, Any]:
            made = client.tensors(pictures)
            data = [made[at] if at % 2 == first else picture.ref() for at, picture in enumerate(pictures)]
            written: Mapping[str, Any] = client.features(pictures, data)
            return written

        return mixed

    assert conversation(client, write(0), "mixed-0") == by_parts
    assert conversation(client, write(1), "mixed-1") == by_parts


def test_cached_images_give_the_same_answer_without_a_salt(wire: Any) -> None:
    client = wire("qwen3-vl")
    pictures = [client.picture(*size) for size in SIZES[:3]]
    answers = [
        client.answer_of({**body, "cache_salt": None})
        for body in (
            client.content_parts(pictures),
            client.features(pictures),
            client.features(pictures, client.tensors(pictures)),
            client.content_parts(pictures, inline=True),
            client.features(pictures, inline=True),
        )
    ]
    assert answers == [answers[0]] * len(answers)


def test_an_image_that_is_sent_twice_is_in_the_prompt_twice(wire: Any) -> None:
    client = wire("qwen3-vl")
    one, other = client.picture(200, 100), client.picture(100, 200)
    pictures = [one, other, one]
    assert client.answer_of(client.features(pictures)) == client.answer_of(client.content_parts(pictures))


def test_a_prompt_without_images_passes_unchanged(wire: Any) -> None:
    client = wire("qwen3-vl")
    assert len(client.answer_of(client.body(client.logical(0))).tokens) == 8
