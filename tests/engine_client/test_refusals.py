"""Whatever a caller does: what an engine would answer with garbage, or die of, is refused before it leaves."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder, logical
from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.image_refs import ImageRef
from rollout.engine.protocol import GenerateRequest, encode_request

PAD = 99
Tamper = Callable[[GenerateRequest], GenerateRequest]


def encode(request: GenerateRequest) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(encode_request(request, "m", "r-0.0"))
    return body


def expanded_already(request: GenerateRequest) -> GenerateRequest:
    return replace(request, prompt=LogicalIds(request.expanded))


def one_image_too_few(request: GenerateRequest) -> GenerateRequest:
    return replace(request, images=request.images[:-1])


def one_image_too_many(request: GenerateRequest) -> GenerateRequest:
    return replace(request, images=(*request.images, request.images[0]))


def only_the_newest_image(request: GenerateRequest) -> GenerateRequest:
    return replace(request, images=request.images[-1:])


def as_many_images_as_pads_of_an_expanded_prompt(request: GenerateRequest) -> GenerateRequest:
    pads = int((request.expanded == PAD).sum())
    return replace(request, prompt=LogicalIds(request.expanded), images=request.images[:1] * pads)


def images_in_another_order(request: GenerateRequest) -> GenerateRequest:
    one, two, *rest = request.images
    return replace(request, images=(two, one, *rest))


def first_image_url(url: Any) -> Tamper:
    return lambda request: replace(request, images=(ImageRef(url, request.images[0].hash), *request.images[1:]))


def first_image_hash(name: str) -> Tamper:
    def tamper(request: GenerateRequest) -> GenerateRequest:
        images = (ImageRef(request.images[0].url, name), *request.images[1:])
        marks = (replace(request.placeholders[0], hash=name), *request.placeholders[1:])
        return replace(request, images=images, placeholders=marks)

    return tamper


def first_range(**changed: int) -> Tamper:
    def tamper(request: GenerateRequest) -> GenerateRequest:
        first, *rest = request.placeholders
        moved = Placeholder(
            first.hash, first.offset + changed.get("offset", 0), first.length + changed.get("length", 0)
        )
        return replace(request, placeholders=(moved, *rest))

    return tamper


def other_expansion(request: GenerateRequest) -> GenerateRequest:
    ids = request.expanded.copy()
    ids[0] = 42
    return replace(request, expanded=ExpandedIds(ids))


def sampling(**keys: Any) -> Tamper:
    return lambda request: replace(request, sampling={**request.sampling, **keys})


def without_temperature(request: GenerateRequest) -> GenerateRequest:
    return replace(request, sampling={"max_tokens": 8})


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        # answered with 200 and garbage
        (expanded_already, "expanded already"),
        (as_many_images_as_pads_of_an_expanded_prompt, "expanded already"),
        (one_image_too_few, "3 image pad tokens for 2 images"),
        (only_the_newest_image, "3 image pad tokens for 1 images"),
        (one_image_too_many, "3 image pad tokens for 4 images"),
        (images_in_another_order, "the references name"),
        (first_range(offset=1), "must lie exactly"),
        (first_range(offset=-1), "must lie exactly"),
        (first_range(length=-1), "must lie exactly"),
        (first_image_url("mmraw:v3:e30"), "needs its data:image"),
        (first_image_url("data:application/x-npy;base64,AAAA"), "needs its data:image"),
        (first_image_url("data:video/mp4;base64,AAAA"), "needs its data:image"),
        (first_image_url("https://host/x.png"), "needs its data:image"),
        (sampling(temprature=1.0), "'temprature' may not be set"),
        (sampling(n=2), "'n' may not be set"),
        (sampling(logprobs=None), "'logprobs' may not be set"),
        (sampling(output_kind=1), "'output_kind' may not be set"),
        (without_temperature, "the temperature is None"),
        (sampling(temperature=float("nan")), "the temperature is nan"),
        # kills the engine
        (first_range(length=1), "must lie exactly"),
        (first_range(length=-50), "takes no tokens"),
        (first_image_url(None), "image 0 is None; every image needs"),
        (first_image_url(""), "every image needs"),
        # answered 400 or 500
        (first_image_url("file://host/x.png"), "needs its data:image"),
        (first_image_hash("0123456789abcdeg"), "not lower-case hex"),
        (first_image_hash("ABCDEF0123456789"), "not lower-case hex"),
        (other_expansion, "not the prompt with each pad token repeated"),
    ],
)
def test_what_an_engine_must_not_see_is_refused_by_name(pictures: GenerateRequest, tamper: Tamper, told: str) -> None:
    with pytest.raises(RequestRefusedLocally, match=r"^r-0: ") as refused:
        encode(tamper(pictures))
    assert told in str(refused.value)


@pytest.mark.parametrize("ids", [[], [-1, 2]])
def test_an_empty_or_negative_prompt_is_refused(text: GenerateRequest, ids: list[int]) -> None:
    with pytest.raises(RequestRefusedLocally):
        encode(replace(text, prompt=logical(ids), expanded=ExpandedIds(logical(ids))))


def test_a_sound_request_has_one_part_for_each_pad_in_order(pictures: GenerateRequest) -> None:
    body = encode(pictures)
    assert body["token_ids"] == pictures.prompt.tolist()
    parts = [{"type": "image_url", "url": image.url, "uuid": image.hash} for image in pictures.images]
    assert body["content_parts"] == parts
    assert "features" not in body
    assert body["sampling_params"] == {"temperature": 0.0, "max_tokens": 8, "logprobs": 0, "stop_token_ids": [7]}
    assert body["return_token_ids"] is True


def test_stop_tokens_of_the_caller_come_on_top_of_the_renderers(text: GenerateRequest) -> None:
    body = encode(replace(text, sampling={"temperature": 1, "stop_token_ids": [8, 7]}))
    assert body["sampling_params"]["stop_token_ids"] == [7, 8]


@given(st.data())
def test_a_prompt_that_lost_or_gained_any_pad_is_refused(data: st.DataObject) -> None:
    """For any prompt with images: changing one token to or from a pad never goes through."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    prompt: list[int] = [1]
    expanded: list[int] = [1]
    marks = []
    for length in lengths:
        prompt += [2, PAD, 3]
        marks.append(Placeholder("0" * 32, len(expanded) + 1, length))
        expanded += [2, *[PAD] * length, 3]
    request = GenerateRequest(
        request_id="r",
        session="r",
        prompt=logical(prompt),
        images=tuple(ImageRef(f"file:///{'0' * 64}.png", "0" * 32) for _ in lengths),
        expanded=ExpandedIds(np.array(expanded, np.int32)),
        known=0,
        placeholders=tuple(marks),
        pad_id=PAD,
        sampling={"temperature": 1.0},
        stop_token_ids=(),
    )
    encode(request)
    at = data.draw(st.integers(0, len(prompt) - 1))
    changed = request.prompt.copy()
    changed[at] = 4 if changed[at] == PAD else PAD
    with pytest.raises(RequestRefusedLocally):
        encode(replace(request, prompt=LogicalIds(changed)))


def with_image(request: GenerateRequest, url: str, name: str) -> GenerateRequest:
    """The first image of a request by this name and from there."""
    return first_image_hash(name)(replace(request, images=(ImageRef(url, name), *request.images[1:])))


def test_other_bytes_under_a_known_hash_are_refused(pictures: GenerateRequest) -> None:
    data, other = b"the picture", b"another picture"
    name = hashlib.sha256(data).hexdigest()[:32]

    def uri(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    encode(with_image(pictures, uri(data), name))
    with pytest.raises(RequestRefusedLocally, match="image 0 is called"):
        encode(with_image(pictures, uri(other), name))


def test_a_file_that_is_named_after_other_bytes_is_refused(pictures: GenerateRequest) -> None:
    sha256 = hashlib.sha256(b"the picture").hexdigest()
    encode(with_image(pictures, f"file:///runs/a%20b/{sha256}.png", sha256[:32]))
    with pytest.raises(RequestRefusedLocally, match="wrong image"):
        encode(with_image(pictures, f"file:///runs/a%20b/{sha256}.png", "0" * 32))
    with pytest.raises(RequestRefusedLocally, match="no image"):
        encode(with_image(pictures, "data:image/png;base64,====", sha256[:32]))
