"""What preparation refuses: the reason, the place of the part, and that nothing changes."""

from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rollout.api_keys import new_key
from rollout.config.image_limits import ENGINE_MAX_PIXELS
from rollout.errors import ConfigurationError
from rollout.images import ImageError, ImagePolicy, ImageStoreError, prepare_images
from rollout.images.policy import describe_too_many_pixels


def as_user(part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


_Tensor = type("Tensor", (), {"__module__": "torch", "__array__": None})
_Array = type("Array", (), {"__module__": "jaxlib", "__array__": None})

REFUSED: list[tuple[Any, str]] = [
    ({"type": "image_url", "image_url": {"url": None}}, "missing"),
    ({"type": "image_url", "image_url": {}}, "missing"),
    ({"type": "image_url", "image_url": None}, "missing"),
    ({"type": "image_url"}, "missing"),
    ({"image_url": {"detail": "low"}}, "missing"),
    ({"type": "image", "image": None}, "missing"),
    ({"type": "image"}, "missing"),
    ({"type": "input_image", "file_id": "f"}, "missing"),
    ({"type": "image", "image": ""}, "empty"),
    ({"type": "image", "image": 7}, "int"),
    ({"type": "image", "image": ["data:image/png;base64,AAAA"]}, "list"),
    ({"type": "image_url", "image_url": {"url": {"url": "x"}}}, "dict"),
    ({"type": "image", "image": np.zeros((2, 2, 3))}, r"a ndarray; write Image\.fromarray\(array\)"),
    ({"type": "image_url", "image_url": np.zeros((2, 2, 3))}, r"a ndarray; write Image\.fromarray\(array\)"),
    ({"type": "image", "image": _Tensor()}, r"a Tensor; write torchvision\.transforms\.functional\.to_pil_image"),
    ({"type": "image", "image": _Array()}, r"an Array; write Image\.fromarray\(numpy\.asarray\(array\)\)"),
    ({"type": "image", "image": Path("a.png")}, r"a PosixPath; write Image\.open\(path\)"),
    ({"type": "image", "image": BytesIO(b"GIF89a")}, r"a BytesIO; write \.read\(\)"),
    (
        {"type": "image", "image": "http://example.com/a.png"},
        "scheme http: is not accepted; download the image",
    ),
    ({"type": "image", "image": "https://example.com/a.png"}, "scheme https: is not accepted; download the image"),
    ({"type": "image", "image": "ftp://example.com/a.png"}, "scheme ftp:"),
    (
        {"type": "image", "image": "/etc/passwd"},
        r"nor a file:// URL; for a path, write Image\.open",
    ),
    ({"type": "image", "image": "a.png"}, "neither"),
    ({"type": "image", "image": "iVBORw0KGgo="}, "neither"),
    ({"type": "image", "image": b""}, "no bytes"),
    ({"type": "image", "image": b"GIF89a"}, "cut short"),
    ({"type": "image", "image": Image.new("RGB", (0, 5))}, "0×5, which is not a valid size"),
    ({"type": "image", "image": "data:image/png,AAAA"}, "base64"),
    ({"type": "image", "image": "data:text/html;base64,AAAA"}, "data:image/<type>;base64"),
    ({"type": "image", "image": "data:image/p\nng;base64,AAAA"}, "data:image/<type>;base64"),
    ({"type": "image", "image": "data:image/png;charset;base64,AAAA"}, "data:image/<type>;base64"),
    ({"type": "image", "image": 'data:image/png;name="a b";base64,AAAA'}, "data:image/<type>;base64"),
    ({"type": "image", "image": "data:;base64,AAAA"}, "data:image/<type>;base64"),
    ({"type": "image", "image": "DATA:image/png;base64,AAAA"}, "scheme DATA:"),
    ({"type": "image", "image": "data:image/png;base64,AA AA"}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,AAAA\n"}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,AAA"}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,AAAA="}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,-_AA"}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,äAAA"}, "strict base64"),
    ({"type": "image", "image": "data:image/png;base64,"}, "no bytes"),
    ({"type": "image", "image": "data:image/png;base64,PHN2Zz48L3N2Zz4="}, "SVG"),
]


@pytest.mark.parametrize("mode", ["offload", "inline"])
@pytest.mark.parametrize(("part", "reason"), REFUSED)
def test_a_refusal_names_the_part_and_leaves_the_request_untouched(
    part: Any, reason: str, mode: Literal["offload", "inline"], encode: Any, offload: ImagePolicy
) -> None:
    policy = ImagePolicy(mode=mode, directory=offload.directory)
    good = {"type": "image", "image": encode()}
    messages = [{"role": "user", "content": [good]}, {"role": "tool", "content": [{"type": "text"}, part, good]}]
    before = dict(good)
    with pytest.raises(ImageError, match=reason) as caught:
        prepare_images(messages, policy)
    assert (caught.value.message_index, caught.value.part_index) == (1, 1)
    assert str(caught.value).startswith("messages[1].content[1]: ")
    assert good == before
    assert list(offload.directory.iterdir()) == []


def test_too_many_bytes_are_refused_before_they_are_decoded(encode: Any, data_uri: Any, tmp_path: Path) -> None:
    data = encode("BMP", width=100, height=100)
    policy = ImagePolicy(mode="offload", directory=tmp_path, max_bytes=1_000)
    for image in (data_uri(data), data):
        with pytest.raises(ImageError, match=r"30,\d+ bytes, but images\.max_bytes allows 1,000; make the image"):
            prepare_images(as_user({"type": "image", "image": image}), policy)


def test_the_error_of_an_image_too_large_for_any_engine_does_not_suggest_a_higher_limit() -> None:
    assert describe_too_many_pixels(ENGINE_MAX_PIXELS + 1, ENGINE_MAX_PIXELS).endswith("; make the image smaller")


def test_content_that_contains_itself_is_refused(offload: ImagePolicy) -> None:
    part: dict[str, Any] = {"type": "tool_result", "content": []}
    part["content"].append(part)
    with pytest.raises(ImageError, match="the content contains itself") as caught:
        prepare_images([{"role": "tool", "content": ["text", part]}], offload)
    assert (caught.value.message_index, caught.value.part_index) == (0, 1)


def test_an_image_directory_that_cannot_be_created_is_a_store_error(encode: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    policy = ImagePolicy(mode="offload", directory=tmp_path / "file" / "images")
    with pytest.raises(ImageStoreError, match="cannot be used"):
        prepare_images(as_user({"type": "image", "image": encode()}), policy)


def test_a_policy_with_more_pixels_than_any_engine_accepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the limit of all engines"):
        ImagePolicy(mode="offload", directory=tmp_path, max_pixels=200_000_000)


def test_an_image_with_a_key_in_its_metadata_is_refused(offload: ImagePolicy) -> None:
    metadata = PngInfo()
    metadata.add_text("comment", new_key())
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=metadata)
    with pytest.raises(ImageError, match="contains the API key of an endpoint"):
        prepare_images(as_user({"type": "image", "image": file.getvalue()}), offload)
    assert not list(offload.directory.rglob("*.png"))
