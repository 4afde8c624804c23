"""Preparation compared with a simple reference, on conversations that hypothesis generates."""

import base64
import copy
import hashlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rollout.images import ImageAsset, ImagePolicy, PreparedImage, prepare_images


def encoded(width: int, height: int, format_name: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(file, format_name)
    return file.getvalue()


SOURCES = {
    (data if as_bytes else "data:image/png;base64," + base64.b64encode(data).decode()): (data, width, height, kind)
    for width, height, kind, as_bytes in [(3, 5, "png", False), (8, 2, "jpeg", False), (4, 4, "gif", True)]
    for data in [encoded(width, height, kind.upper())]
}

sources = st.sampled_from(list(SOURCES))
extras = st.dictionaries(st.sampled_from(["detail", "note", "cache_control"]), st.text(max_size=3), max_size=2)
image_parts = st.one_of(
    st.builds(lambda u, e, f: {**e, "type": "image_url", "image_url": {"url": u, **f}}, sources, extras, extras),
    st.builds(lambda u, e: {**e, "type": "image_url", "image_url": {"url": u}}, sources, extras),
    st.builds(lambda u, e: {"type": "image", "image": u, **e}, sources, extras),
    st.builds(lambda u: {"image": u, "image_url": None}, sources),
    st.builds(lambda u, e: {**e, "image_url": {"url": u}}, sources, extras),
)
schemas = st.recursive(
    st.sampled_from(["image", "image_url", None, 1, "data:image/png;base64,AAAA"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "image", "image_url", "properties", "url"]), inner, max_size=4)
    ),
    max_leaves=8,
)
other_parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text, "image": None}, st.text(max_size=5)),
    st.builds(lambda schema: {"type": "json", "schema": schema, "metadata": schema}, schemas),
    st.text(max_size=5),
    st.none(),
)
parts = st.recursive(
    image_parts | other_parts,
    lambda inner: st.builds(
        lambda content, schema: {"type": "tool_result", "content": content, "input_schema": schema},
        st.lists(inner, max_size=3),
        schemas,
    ),
    max_leaves=6,
)
messages_ = st.lists(
    st.builds(
        lambda role, content, schema: {"role": role, "content": content, "tools": schema, "metadata": schema},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.lists(parts, max_size=4) | st.text(max_size=5) | st.none(),
        schemas,
    ),
    max_size=4,
)


class ReferencePreparation:
    """A simple preparation: it copies everything and caches nothing."""

    def __init__(self, mode: str, directory: Path) -> None:
        self.mode = mode
        self.directory = directory
        self.images: list[PreparedImage] = []
        self.rewritten = 0

    def messages(self, messages: Any) -> Any:
        return [
            {**message, "content": self.content(message["content"], index, None)}
            for index, message in enumerate(messages)
        ]

    def content(self, content: Any, message: int, outer: int | None) -> Any:
        if not isinstance(content, list):
            return content
        return [self.part(part, message, index if outer is None else outer) for index, part in enumerate(content)]

    def part(self, part: Any, message: int, index: int) -> Any:
        if not isinstance(part, dict):
            return part
        if part.get("type") in ("text", "json"):
            return part
        if part.get("type") == "tool_result":
            return {**part, "content": self.content(part["content"], message, index)}
        key = "image_url" if part.get("image_url") else "image"
        inner = part[key] if isinstance(part[key], dict) else {"url": part[key]}
        url = self.image(inner["url"], message, index)
        rest = {name: value for name, value in part.items() if name not in ("type", "image_url", key)}
        prepared = {**rest, "type": "image_url", "image_url": {**inner, "url": url}}
        self.rewritten += prepared != part
        return prepared

    def image(self, source: Any, message: int, index: int) -> str:
        data, width, height, kind = SOURCES[source]
        sha256 = hashlib.sha256(data).hexdigest()
        name = sha256 + {"png": ".png", "jpeg": ".jpg", "gif": ".gif"}[kind]
        if self.mode == "offload":
            url = f"file://{self.directory}/{name}"
        else:
            url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        size = (width, height, len(data))
        asset = ImageAsset(url, sha256, sha256[:32], name, *size, media_type=f"image/{kind}")
        self.images.append(PreparedImage(message, index, asset))
        return url


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(deadline=None)
@given(messages=messages_, mode=st.sampled_from(["offload", "inline"]))
def test_preparation_equals_that_of_the_reference(
    messages: Any, mode: Literal["offload", "inline"], directory: Path
) -> None:
    policy = ImagePolicy(mode=mode, directory=directory / mode)
    reference = ReferencePreparation(mode, policy.directory)
    expected = reference.messages(copy.deepcopy(messages))
    report = prepare_images(messages, policy)
    assert messages == expected
    assert report.images == tuple(reference.images)
    assert report.rewritten == reference.rewritten
    again = prepare_images(messages, policy)
    assert (again.images, again.rewritten, again.bytes_written) == (report.images, 0, 0)
