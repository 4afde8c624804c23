"""A request that an engine would answer wrongly, or that would crash it, is refused before it is sent."""

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

from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder, as_logical_ids
from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.image_refs import ImageRef
from rollout.engine.protocol import encode_request
from rollout.engine.request import GenerateRequest
from tests.unit.engine.requests import PAD, make_request

GEOMETRY = geometry_for(
    "qwen_vl", {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1024, "max_pixels": 65536}
)
Tamper = Callable[[GenerateRequest], GenerateRequest]


def encode(request: GenerateRequest, geometry: Geometry | None = None) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(encode_request(request, "m", "r-0.0", geometry=geometry))
    return body


def as_many_images_as_pads_of_an_expanded_prompt(request: GenerateRequest) -> GenerateRequest:
    pads = int((request.expanded_prompt == PAD).sum())
    return replace(request, prompt=LogicalIds(request.expanded_prompt), images=request.images[:1] * pads)


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


def changed_first_token(request: GenerateRequest) -> GenerateRequest:
    ids = request.expanded_prompt.copy()
    ids[0] = 42
    return replace(request, expanded_prompt=ExpandedIds(ids))


def text_in_image_range(request: GenerateRequest) -> GenerateRequest:
    ids = request.expanded_prompt.copy()
    ids[request.placeholders[0].offset] = 42
    return replace(request, expanded_prompt=ExpandedIds(ids))


def with_more_pads(count: int) -> Tamper:
    """Give the last image more pads and a longer range, so that only its layout shows the error."""

    def tamper(request: GenerateRequest) -> GenerateRequest:
        *before, last = request.placeholders
        end = last.offset + last.length
        pads = [PAD] * (last.length + count)
        expanded = np.concatenate(
            [request.expanded_prompt[: last.offset], np.array(pads, np.int32), request.expanded_prompt[end:]]
        )
        longer = replace(last, length=last.length + count)
        return replace(request, expanded_prompt=ExpandedIds(expanded), placeholders=(*before, longer))

    return tamper


def first_image_payload(payload: dict[str, Any]) -> Tamper:
    def tamper(request: GenerateRequest) -> GenerateRequest:
        first, *rest = request.images
        return replace(request, images=(ImageRef(first.url, first.hash, payload), *rest))

    return tamper


def sampling(**keys: Any) -> Tamper:
    return lambda request: replace(request, sampling={**request.sampling, **keys})


Cases = dict[str, tuple[Tamper, str]]
SILENTLY_WRONG: Cases = {
    "ids that are expanded already": (lambda r: replace(r, prompt=LogicalIds(r.expanded_prompt)), "expanded already"),
    "expanded ids with an image for each pad": (as_many_images_as_pads_of_an_expanded_prompt, "expanded already"),
    "fewer images than pads": (lambda r: replace(r, images=r.images[:-1]), "3 image pad tokens for 2 images"),
    "the newest image alone": (lambda r: replace(r, images=r.images[-1:]), "3 image pad tokens for 1 images"),
    "more images than pads": (lambda r: replace(r, images=(*r.images, r.images[0])), "3 image pad tokens for 4 images"),
    "no image at all": (lambda r: replace(r, images=(), placeholders=()), "3 image pad tokens for 0 images"),
    "images in another order": (
        lambda r: replace(r, images=(r.images[1], r.images[0], *r.images[2:])),
        "the request has the images",
    ),
    "a reference of another kind": (first_image_url("mmraw:v3:e30"), "give every image a data:"),
    "a tensor instead of an image": (
        first_image_url("data:application/x-npy;base64,AAAA"),
        "give every image a data:",
    ),
    "a video instead of an image": (first_image_url("data:video/mp4;base64,AAAA"), "give every image a data:"),
    "an image on another host": (first_image_url("https://host/x.png"), "give every image a data:"),
    "a range over tokens that are not pads": (text_in_image_range, "in which each pad token is repeated"),
    "a range that begins late": (first_range(offset=1), "must be the same range"),
    "a range that begins early": (first_range(offset=-1), "must be the same range"),
    "a range that is short": (first_range(length=-1), "must be the same range"),
    "another file under a known hash": (first_image_url(f"file:///runs/{'0' * 64}.png"), "the wrong image"),
    "another picture under a known hash": (first_image_url("data:image/png;base64,AAAA"), "the wrong image"),
}
CRASHING: Cases = {
    "a range that is long": (first_range(length=1), "must be the same range"),
    "a range of no tokens": (first_range(length=-50), "has no tokens"),
    "null instead of an image": (first_image_url(None), "image 0 has the URL None; give every image"),
    "an empty text instead of an image": (first_image_url(""), "give every image"),
}
REFUSED_BY_ENGINE: Cases = {
    "a file on another machine": (first_image_url("file://host/x.png"), "give every image a data:"),
    "a hash that is not hex": (first_image_hash("0123456789abcdeg"), "not lower-case hex"),
    "a hash in capitals": (first_image_hash("ABCDEF0123456789"), "not lower-case hex"),
    "another prompt": (changed_first_token, "the prompt in which each pad token is repeated"),
}
CASES = SILENTLY_WRONG | CRASHING | REFUSED_BY_ENGINE
SAMPLING_CASES: Cases = {
    "a sampling key that is misspelt": (sampling(temprature=1.0), "'temprature' cannot be set"),
    "several answers": (sampling(n=2), "'n' cannot be set"),
    "no log-probs": (sampling(logprobs=None), "'logprobs' cannot be set"),
    "another kind of answer": (sampling(output_kind=1), "'output_kind' cannot be set"),
    "no temperature": (lambda r: replace(r, sampling={"max_tokens": 8}), "the temperature is None"),
    "a temperature that is not a number": (sampling(temperature=float("nan")), "the temperature is nan"),
    "a number that JSON does not have": (sampling(seed=float("nan")), "seed is nan"),
    "one stop token": (sampling(stop_token_ids=5), "stop_token_ids is 5; expected a list"),
    "stop tokens that are null": (sampling(stop_token_ids=None), "stop_token_ids is None; expected a list"),
    "an object": (sampling(extra_args={"x": object()}), "the sampling parameters cannot be written as JSON"),
    "a number beyond JSON": (sampling(seed=2**80), "the sampling parameters cannot be written as JSON"),
}


@pytest.mark.parametrize("geometry", [None, GEOMETRY], ids=["content_parts", "references"])
@pytest.mark.parametrize(("tamper", "expected_text"), CASES.values(), ids=CASES)
def test_a_wrong_request_is_refused_by_name(
    pictures: GenerateRequest, tamper: Tamper, expected_text: str, geometry: Geometry | None
) -> None:
    encode(pictures, geometry)
    with pytest.raises(RequestRefusedLocally, match=r"^r-0[.:]") as refused:
        encode(tamper(pictures), geometry)
    assert expected_text in str(refused.value)


@pytest.mark.parametrize(("tamper", "expected_text"), SAMPLING_CASES.values(), ids=SAMPLING_CASES)
def test_wrong_sampling_is_refused_by_its_key_without_the_name_of_the_request(
    pictures: GenerateRequest, tamper: Tamper, expected_text: str
) -> None:
    with pytest.raises(RequestRefusedLocally, match=r"^(?!r-0)") as refused:
        encode(tamper(pictures))
    assert expected_text in str(refused.value)


REFERENCE_CASES: Cases = {
    "a range longer than the embeddings": (with_more_pads(1), "takes 6 tokens, but its placeholder has 7"),
    "a range shorter than the embeddings": (with_more_pads(-1), "takes 6 tokens, but its placeholder has 5"),
    "an image without data": (first_image_payload({}), "must be {'image_grid_thw'"),
    "an image of an unsupported modality": (first_image_payload({"video_grid_thw": [[1, 2, 12]]}), "must be {"),
    "pixels instead of a reference": (
        first_image_payload({"image_grid_thw": [[1, 2, 12]], "pixel_values": [[0.5, -0.5]]}),
        "pixel_values",
    ),
}


@pytest.mark.parametrize(("tamper", "expected_text"), REFERENCE_CASES.values(), ids=REFERENCE_CASES)
def test_a_wrong_reference_is_refused_by_name(pictures: GenerateRequest, tamper: Tamper, expected_text: str) -> None:
    with pytest.raises(RequestRefusedLocally, match=r"^r-0: ") as refused:
        encode(tamper(pictures), GEOMETRY)
    assert expected_text in str(refused.value)


@pytest.mark.parametrize("ids", [[], [-1, 2]])
def test_an_empty_or_negative_prompt_is_refused(text: GenerateRequest, ids: list[int]) -> None:
    with pytest.raises(RequestRefusedLocally):
        encode(replace(text, prompt=as_logical_ids(ids), expanded_prompt=ExpandedIds(as_logical_ids(ids))))


def test_a_valid_request_has_one_part_for_each_pad_in_order(pictures: GenerateRequest) -> None:
    body = encode(pictures)
    assert body["token_ids"] == pictures.prompt.tolist()
    parts = [{"type": "image_url", "url": image.url, "uuid": image.hash} for image in pictures.images]
    assert body["content_parts"] == parts
    assert "features" not in body
    assert body["sampling_params"] == {"temperature": 0.0, "max_tokens": 8, "logprobs": 0, "stop_token_ids": [7]}
    assert body["return_token_ids"] is True


def test_stop_tokens_of_the_caller_are_added_to_those_of_the_renderer(text: GenerateRequest) -> None:
    body = encode(replace(text, sampling={"temperature": 1, "stop_token_ids": [8, 7]}))
    assert body["sampling_params"]["stop_token_ids"] == [7, 8]


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=5), st.data())
def test_a_prompt_that_lost_or_gained_any_pad_is_refused(images: list[bytes], data: st.DataObject) -> None:
    """For any prompt with images: changing one token to or from a pad never goes through."""
    request = make_request(tuple(images))
    encode(request)
    index = data.draw(st.integers(0, len(request.prompt) - 1))
    changed = request.prompt.copy()
    changed[index] = 4 if changed[index] == PAD else PAD
    with pytest.raises(RequestRefusedLocally):
        encode(replace(request, prompt=LogicalIds(changed)))


def with_image(request: GenerateRequest, url: str, name: str) -> GenerateRequest:
    """Give the first image of a request this URL and this hash."""
    return first_image_hash(name)(replace(request, images=(ImageRef(url, name), *request.images[1:])))


def test_other_bytes_under_a_known_hash_are_refused(pictures: GenerateRequest) -> None:
    data, other = b"the picture", b"another picture"
    name = hashlib.sha256(data).hexdigest()[:32]

    def uri(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    encode(with_image(pictures, uri(data), name))
    with pytest.raises(RequestRefusedLocally, match="image 0 has the hash"):
        encode(with_image(pictures, uri(other), name))


def test_a_file_that_is_named_after_other_bytes_is_refused(pictures: GenerateRequest) -> None:
    sha256 = hashlib.sha256(b"the picture").hexdigest()
    encode(with_image(pictures, f"file:///runs/a%20b/{sha256}.png", sha256[:32]))
    with pytest.raises(RequestRefusedLocally, match="wrong image"):
        encode(with_image(pictures, f"file:///runs/a%20b/{sha256}.png", "0" * 32))
    with pytest.raises(RequestRefusedLocally, match="is unknown"):
        encode(with_image(pictures, "data:image/png;base64,====", sha256[:32]))
