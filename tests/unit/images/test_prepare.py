"""Preparation in place: every form of an image part, what never changes, and all or nothing."""

import base64
import copy
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict

from rollout.images import ImageError, ImagePolicy, load_pixels, prepare_images


def only_part(messages: list[dict[str, Any]]) -> Any:
    return messages[0]["content"][0]


def as_user(part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


SHAPES: list[Callable[[str], dict[str, Any]]] = [
    lambda url: {"type": "image_url", "image_url": {"url": url}},
    lambda url: {"type": "image_url", "image_url": url},
    lambda url: {"type": "image", "image": url},
    lambda url: {"type": "input_image", "image_url": url},
    lambda url: {"image": url},
    lambda url: {"image_url": url},
    lambda url: {"image_url": {"url": url}},
    lambda url: {"type": None, "image": url, "image_url": None},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_becomes_the_canonical_form_in_place(
    shape: Any, encode: Any, data_uri: Any, offload: ImagePolicy
) -> None:
    data = encode("PNG")
    part = shape(data_uri(data))
    messages = as_user(part)
    report = prepare_images(messages, offload)
    url = (offload.directory / (hashlib.sha256(data).hexdigest() + ".png")).as_uri()
    assert part == {"type": "image_url", "image_url": {"url": url}}
    assert only_part(messages) is part
    assert (report.rewritten, report.bytes_written) == (1, len(data))


def test_extra_keys_are_kept(encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    inner = {"url": data_uri(encode()), "detail": "high"}
    messages = as_user({"type": "image_url", "image_url": inner, "cache_control": {"type": "ephemeral"}})
    prepare_images(messages, offload)
    assert only_part(messages)["image_url"] is inner
    assert inner["detail"] == "high"
    assert only_part(messages)["cache_control"] == {"type": "ephemeral"}


@dataclass
class Url:
    url: str
    detail: str = "auto"


@dataclass
class Part:
    type: str
    image_url: Any = None
    image: Any = None


class PydanticUrl(BaseModel):
    url: str


class PydanticPart(BaseModel):
    type: Literal["image_url"] = "image_url"
    image_url: PydanticUrl


class PydanticHuggingFacePart(BaseModel):
    type: Literal["image"] = "image"
    image: str


@dataclass
class Message:
    role: str
    content: list[Any] = field(default_factory=list)


def test_typed_objects_are_changed_in_place(encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    uri = data_uri(encode())
    dataclass_part, pydantic_part = Part("image_url", Url(uri)), PydanticPart(image_url=PydanticUrl(url=uri))
    report = prepare_images([Message("user", [dataclass_part, pydantic_part])], offload)
    url = report.images[0].asset.url
    assert dataclass_part == Part("image_url", Url(url))
    assert pydantic_part.image_url.url == url
    assert report.rewritten == 2


@pytest.mark.parametrize("part", [Part("image_url", "URL"), Part("input_image", "URL"), Part("image", image="URL")])
def test_typed_objects_get_the_canonical_form(part: Part, encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    part = copy.copy(part)
    if part.image is None:
        part.image_url = data_uri(encode())
    else:
        part.image = data_uri(encode())
    url = prepare_images([Message("user", [part])], offload).images[0].asset.url
    assert part == Part("image_url", {"url": url})


def test_a_typed_object_without_room_for_the_canonical_form_keeps_its_own(
    encode: Any, data_uri: Any, offload: ImagePolicy
) -> None:
    part = PydanticHuggingFacePart(image=data_uri(encode()))
    report = prepare_images([Message("user", [part])], offload)
    assert part == PydanticHuggingFacePart(image=report.images[0].asset.url)
    assert prepare_images([Message("user", [part])], offload).rewritten == 0


class FrozenPart(BaseModel):
    model_config = ConfigDict(frozen=True)
    type: str = "image"
    image: str


@pytest.mark.parametrize("freeze", [lambda uri: FrozenPart(image=uri), lambda uri: MappingProxyType({"image": uri})])
def test_a_part_that_cannot_be_changed_is_an_error_and_nothing_else_is_changed(
    freeze: Any, encode: Any, data_uri: Any, offload: ImagePolicy
) -> None:
    first = {"type": "image", "image": data_uri(encode(seed=1)), "note": "first"}
    before = dict(first)
    with pytest.raises(ImageError, match="cannot be changed in place") as caught:
        prepare_images([{"role": "user", "content": [first, freeze(data_uri(encode()))]}], offload)
    assert (caught.value.message_index, caught.value.part_index) == (0, 1)
    assert first == before
    assert list(first) == list(before)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_images_are_found_in_every_role(role: str, encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": "see"}, {"type": "image", "image": encode()}]}]
    report = prepare_images(messages, offload)
    assert (report.images[0].message_index, report.images[0].part_index) == (0, 1)


def test_images_inside_tool_results_are_found_under_the_outermost_part(
    encode: Any, data_uri: Any, offload: ImagePolicy
) -> None:
    deep: dict[str, Any] = {"type": "tool_result", "content": [{"type": "image", "image": data_uri(encode(seed=2))}]}
    result: dict[str, Any] = {
        "type": "tool_result",
        "content": [{"type": "text", "text": "done"}, {"image": encode(seed=1)}, deep],
    }
    report = prepare_images([{"role": "user", "content": "go"}, {"role": "tool", "content": ["text", result]}], offload)
    assert [(image.message_index, image.part_index) for image in report.images] == [(1, 1), (1, 1)]
    assert result["content"][1]["type"] == "image_url"
    assert deep["content"][0]["type"] == "image_url"


WITHOUT_IMAGES: list[Any] = [
    {"role": "user", "content": "data:image/png;base64,AAAA"},
    {"role": "user", "content": None},
    {"role": "user", "content": {"type": "image"}},
    {"role": "assistant", "tool_calls": [{"function": {"arguments": {"type": "image", "image": "x"}}}]},
    {"role": "user", "content": [], "metadata": {"type": "image", "image": "x"}},
    {"role": "user", "content": [], "tools": [{"type": "image"}]},
    {"role": "user", "content": [{"type": "text", "text": "t", "image": "x", "image_url": "y"}]},
    {"role": "user", "content": [{"type": "text", "text": "t", "image": None}]},
    {"role": "user", "content": [{"image": None, "text": "t"}, {"image_url": ""}, {"image": {}}, {"image": []}]},
    {"role": "user", "content": [{"type": "json", "schema": {"type": "image"}}, 7, None, "image"]},
    {"role": "tool", "content": [{"type": "tool_result", "metadata": [{"type": "image"}], "content": "image"}]},
    {"role": "user"},
    "not a message",
]


@pytest.mark.parametrize("message", WITHOUT_IMAGES)
def test_other_parts_never_change(message: Any, offload: ImagePolicy) -> None:
    before = copy.deepcopy(message)
    report = prepare_images([message], offload)
    assert message == before
    assert (report.images, report.rewritten, report.bytes_written) == ((), 0, 0)


def test_raw_bytes_stay_as_they_are_and_pillow_images_become_png(
    encode: Any, picture: Any, offload: ImagePolicy
) -> None:
    data = encode("JPEG")
    shapes = [{"type": "image", "image": data}, {"type": "image", "image": picture()}, {"image_url": data}]
    images = prepare_images([{"role": "user", "content": shapes}], offload).images
    as_bytes, as_pillow, as_url = (image.asset for image in images)
    assert as_url.url == as_bytes.url
    assert shapes[0] == shapes[2] == {"type": "image_url", "image_url": {"url": as_bytes.url}}
    assert (offload.directory / as_bytes.file_name).read_bytes() == data
    assert as_pillow.media_type == "image/png"
    stored = Image.open(offload.directory / as_pillow.file_name)
    assert np.array_equal(np.asarray(stored), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LA", "PA"])
def test_a_pillow_image_of_any_mode_with_8_bits_is_accepted(mode: str, picture: Any, offload: ImagePolicy) -> None:
    image = picture().convert("RGB").convert("L" if mode in ("LA", "PA") else mode).convert(mode)
    report = prepare_images(as_user({"type": "image", "image": image}), offload)
    assert (report.images[0].asset.width, report.images[0].asset.height) == (12, 8)


def test_a_pillow_image_is_the_same_picture_as_the_file_it_came_from(encode: Any, offload: ImagePolicy) -> None:
    data = encode("PNG", orientation=6)
    image = Image.open(io.BytesIO(data))
    [prepared] = prepare_images(as_user({"type": "image", "image": image}), offload).images
    stored = load_pixels((offload.directory / prepared.asset.file_name).read_bytes())
    assert np.array_equal(np.asarray(stored), np.asarray(load_pixels(data)))


def test_the_extension_follows_the_bytes_and_not_the_declared_type(
    encode: Any, data_uri: Any, messages_with: Any, offload: ImagePolicy
) -> None:
    messages = messages_with(data_uri(encode("JPEG")))
    [image] = prepare_images(messages, offload).images
    assert image.asset.file_name.endswith(".jpg")
    assert image.asset.media_type == "image/jpeg"


def test_the_report_has_the_hash_of_every_image_in_order(encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    datas = [encode("JPEG", orientation=6, seed=1), encode("PNG", seed=2), encode("JPEG", orientation=6, seed=1)]
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"image": data}]} for data in datas]
    report = prepare_images(messages, offload)
    assert [image.message_index for image in report.images] == [0, 1, 2]
    for image, data in zip(report.images, datas, strict=True):
        digest = hashlib.sha256(data).hexdigest()
        assert (image.asset.sha256, image.asset.mm_hash, image.asset.n_bytes) == (digest, digest[:32], len(data))
    assert (report.images[0].asset.width, report.images[0].asset.height) == (8, 12)
    assert report.rewritten == 3
    assert report.bytes_written == len(datas[0]) + len(datas[1])
    assert len(list(offload.directory.iterdir())) == 2


def test_prepared_messages_do_not_change(encode: Any, data_uri: Any, offload: ImagePolicy) -> None:
    messages = [{"role": "user", "content": [shape(data_uri(encode(seed=n)))]} for n, shape in enumerate(SHAPES)]
    first = prepare_images(messages, offload)
    before = json.dumps(messages)
    again = prepare_images(messages, offload)
    assert json.dumps(messages) == before
    assert again.images == first.images
    assert (again.rewritten, again.bytes_written) == (0, 0)


def test_an_image_that_another_process_prepared_is_read_and_checked(
    encode: Any, messages_with: Any, offload: ImagePolicy
) -> None:
    data = encode()
    name = hashlib.sha256(data).hexdigest() + ".png"
    offload.directory.mkdir(parents=True)
    (offload.directory / name).write_bytes(data)
    messages = messages_with((offload.directory / name).as_uri())
    report = prepare_images(messages, offload)
    assert (report.rewritten, report.bytes_written, report.images[0].asset.file_name) == (0, 0, name)


@pytest.mark.parametrize("mode", ["offload", "inline"])
def test_an_asset_whose_bytes_changed_is_refused(
    mode: Literal["offload", "inline"], encode: Any, messages_with: Any, offload: ImagePolicy
) -> None:
    policy = ImagePolicy(mode=mode, directory=offload.directory)
    offload.directory.mkdir(parents=True)
    path = offload.directory / ("0" * 64 + ".png")
    path.write_bytes(encode())
    with pytest.raises(ImageError, match="was changed: its bytes no longer have"):
        prepare_images(messages_with(path.as_uri()), policy)


def test_inline_keeps_the_uri(encode: Any, data_uri: Any, messages_with: Any, inline: ImagePolicy) -> None:
    uri = data_uri(encode("PNG"))
    messages = messages_with(uri)
    report = prepare_images(messages, inline)
    assert only_part(messages)["image_url"]["url"] is uri
    assert report.images[0].asset.url is uri
    assert (report.rewritten, report.bytes_written, list(inline.directory.iterdir())) == (0, 0, [])


@pytest.mark.parametrize("header", ["image/png", "image/jpeg;charset=utf-8", "image/x-any;name=a.jpg;a=%20"])
def test_inline_writes_the_canonical_header(header: str, encode: Any, messages_with: Any, inline: ImagePolicy) -> None:
    data = encode("JPEG")
    payload = base64.b64encode(data).decode()
    messages = messages_with(f"data:{header};base64,{payload}")
    [image] = prepare_images(messages, inline).images
    assert image.asset.url == only_part(messages)["image_url"]["url"] == f"data:image/jpeg;base64,{payload}"
    assert image.asset.sha256 == hashlib.sha256(data).hexdigest()


def test_inline_gives_bytes_and_pillow_images_a_uri_of_their_own_type(
    encode: Any, picture: Any, inline: ImagePolicy
) -> None:
    for what, media_type in ((encode("WEBP"), "webp"), (picture(), "png")):
        messages = as_user({"type": "image", "image": what})
        prepare_images(messages, inline)
        assert only_part(messages)["image_url"]["url"].startswith(f"data:image/{media_type};base64,")
        assert prepare_images(messages, inline).rewritten == 0


@pytest.mark.parametrize("mode", ["offload", "inline"])
def test_a_file_in_an_allowed_directory_is_copied(
    mode: Literal["offload", "inline"], encode: Any, messages_with: Any, tmp_path: Path
) -> None:
    dataset = tmp_path / "data set"
    dataset.mkdir()
    source = dataset / "photo (1).png"
    source.write_bytes(encode())
    policy = ImagePolicy(mode=mode, directory=tmp_path / "images", allow=(dataset,))
    messages = messages_with(source.as_uri())
    [image] = prepare_images(messages, policy).images
    source.write_bytes(b"changed by its owner")
    assert image.asset.url == (tmp_path / "images" / image.asset.file_name).as_uri()
    assert (tmp_path / "images" / image.asset.file_name).read_bytes() == encode()


def test_a_foreign_file_in_the_image_directory_gets_its_own_name(
    encode: Any, messages_with: Any, offload: ImagePolicy
) -> None:
    offload.directory.mkdir(parents=True)
    (offload.directory / "plot.png").write_bytes(encode())
    messages = messages_with((offload.directory / "plot.png").as_uri())
    [image] = prepare_images(messages, offload).images
    assert only_part(messages)["image_url"]["url"].endswith(image.asset.file_name)


def test_a_part_that_two_messages_share_is_prepared_once_and_reported_twice(
    encode: Any, data_uri: Any, offload: ImagePolicy
) -> None:
    part = {"type": "image", "image": data_uri(encode())}
    report = prepare_images([{"role": "user", "content": [part]}, {"role": "user", "content": [part]}], offload)
    assert [image.message_index for image in report.images] == [0, 1]
    assert part == {"type": "image_url", "image_url": {"url": report.images[0].asset.url}}
