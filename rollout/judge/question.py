"""Writes a question as the body of a request, with its images and its sampling parameters."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import orjson
from PIL import Image

from rollout.images import inspect_image, read_asset
from rollout.images.allowed_files import file_url_to_path
from rollout.images.errors import AssetError, ImageError
from rollout.images.message_parts import ImagePart, find_image_parts
from rollout.images.sources import describe_rejected_source, encode_data_uri, encode_pillow_image
from rollout.judge.errors import JudgeRefused
from rollout.records.messages import Message
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.texts import dump_json
from rollout.value_limits import OutOfBoundsError, ValueCounter

MAX_QUESTION_BYTES = 64 << 20
_OWN_KEYS = {
    "model": "the model is set in Judge(…); make another Judge for another model",
    "messages": "give the messages as the first argument",
    "stream": "an answer is read as a whole; leave stream out",
    "n": "only one answer is read; to get another answer, ask with another seed",
    **dict.fromkeys(
        ("base_url", "api_key", "timeout", "max_tries", "max_concurrent", "cache_size"),
        "this is an argument of Judge(…), not of ask(); give it where the Judge is made",
    ),
}
_FORM = 'give a string, or a list of messages such as {"role": "user", "content": …}'


async def encode_question(model: str, question: str | Sequence[Message], sampling: Mapping[str, Any]) -> bytes:
    """Return a question as JSON with sorted keys, so that equal questions have equal bodies.

    Keys of `sampling` whose value is None are left out.

    Raises:
        JudgeRefused: the question cannot be written as JSON, or is too large.
        ImageError: an image in it cannot be used.
    """
    if own_key := next((key for key in _OWN_KEYS if key in sampling), None):
        raise JudgeRefused(f"ask({own_key}=…): {_OWN_KEYS[own_key]}.")
    sampling = {key: value for key, value in sampling.items() if value is not None}
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    if not isinstance(messages, list | tuple) or not messages:
        found = describe_wrong_type(question) if not isinstance(messages, list | tuple) else "an empty list"
        raise JudgeRefused(f"the question is {found}; {_FORM}.")
    try:
        ValueCounter().add([messages, sampling])
    except OutOfBoundsError as error:
        raise JudgeRefused(f"the question {error}; ask a shorter question.") from None
    if unknown := next((key for key, value in sampling.items() if _has_non_finite_number(value)), None):
        raise JudgeRefused(
            f"ask({unknown}=…): JSON cannot contain a number in {show_value(sampling[unknown])}; give finite numbers."
        )
    if image_parts := find_image_parts(messages):
        urls = await anyio.to_thread.run_sync(_image_urls, image_parts)
        messages = _with_images(messages, urls)
    try:
        body = dump_json({"model": model, "messages": messages, **sampling}, option=orjson.OPT_SORT_KEYS)
    except (TypeError, RecursionError) as error:
        raise JudgeRefused(
            f"the question cannot be written as JSON: {error}; {_FORM}, and an image as the part "
            '{"type": "image", "image": …}.'
        ) from None
    if len(body) > MAX_QUESTION_BYTES:
        raise JudgeRefused(
            f"the question has {len(body):,} bytes, but the limit is {MAX_QUESTION_BYTES:,}; ask a shorter question, "
            "or give smaller images."
        )
    return body


def _has_non_finite_number(value: object) -> bool:
    """Whether a number in this value is not finite. JSON would write it as null, which changes the question."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_has_non_finite_number(inner) for inner in value)
    return isinstance(value, float) and not math.isfinite(value)


def _image_urls(image_parts: Sequence[ImagePart]) -> dict[int, dict[str, Any]]:
    """Return a new part for each image part, by the `id()` of the old part."""
    replacements: dict[int, dict[str, Any]] = {}
    for image in image_parts:
        try:
            url = _image_url(image.source)
        except ImageError as error:
            raise error.at(image.message_index, image.part_index) from error
        options = image.part.get(image.key) if isinstance(image.part, Mapping) else None
        options = options if isinstance(options, Mapping) else {}
        replacements[id(image.part)] = {"type": "image_url", "image_url": {**options, "url": url}}
    return replacements


def _image_url(source: object) -> str:
    if isinstance(source, Image.Image):
        return encode_data_uri("image/png", encode_pillow_image(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _encode_file(bytes(source))
    if isinstance(source, str) and source.startswith("file://"):
        # `chat` stores images as such files. The name of a file must be the hash of its bytes.
        path = Path(file_url_to_path(source))
        try:
            return _encode_file(read_asset(path.parent, path.name, max_bytes=MAX_QUESTION_BYTES))
        except AssetError as error:
            raise ImageError(f"{error}; give images of the run, or Pillow images") from None
    if isinstance(source, str) and source.startswith(("data:", "https://", "http://")):
        return source
    raise ImageError(describe_rejected_source(source))


def _encode_file(data: bytes) -> str:
    return encode_data_uri(inspect_image(data).format.media_type, data)


def _with_images(value: Any, replacements: Mapping[int, Any]) -> Any:
    """Return a copy of the messages in which the image parts are replaced; the caller's messages do not change."""
    if (replacement := replacements.get(id(value))) is not None:
        return replacement
    if isinstance(value, Mapping):
        return {key: _with_images(inner, replacements) for key, inner in value.items()}
    return [_with_images(inner, replacements) for inner in value] if isinstance(value, list | tuple) else value
