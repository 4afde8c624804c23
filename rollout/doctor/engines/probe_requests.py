"""Makes generate requests with new images, in a run directory of their own."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.rendered import MessageSegment
from renderers_adapter.tokens import ImageSlot, TokenRun, concat_ids, expand
from rollout.engine.request import GenerateRequest
from rollout.images import ImagePolicy, PreparedImage, prepare_images
from rollout.records.messages import Message
from rollout.rundir.directory import RunDirectory
from rollout.session.image_table import ImageTable

PROBE_SIZES = ((96, 64), (320, 240), (1000, 700))
"""Width and height of each probe image. A processor enlarges the first image, keeps the second, shrinks the third."""
_PROBE_QUESTION = 'Which is the largest of these pictures? Say 1, 2 or 3: naïve café, 日本語, {"x": [1, 2]}.'


@contextmanager
def probe_directory(runs_directory: Path) -> Iterator[RunDirectory]:
    """Yield a new run directory for the probe images, and delete it afterwards.

    The directory is in the directory of the runs, because the server must be able to read it.
    """
    directory = RunDirectory(runs_directory / f"doctor-{secrets.token_hex(4)}")
    directory.create()
    try:
        yield directory
    finally:
        shutil.rmtree(directory.path, ignore_errors=True)


def probe_request(
    adapter: RendererAdapter, image_policy: ImagePolicy, sizes: Sequence[tuple[int, int]]
) -> GenerateRequest:
    """Return a request with new images of these sizes in its prompt."""
    pictures = [{"type": "image", "image": _noise_picture(size)} for size in sizes]
    system: Message = {"role": "system", "content": "You compare pictures."}
    question = {"type": "text", "text": _PROBE_QUESTION}
    user_message: Message = {"role": "user", "content": [*pictures, question]}
    image_table = ImageTable(adapter.geometry)
    images = prepare_images([user_message], image_policy).images
    image_table.add(images, first_index=0)
    # Renderers of text models take contents as texts.
    content = [*[{"type": "image"}] * len(sizes), question] if sizes else _PROBE_QUESTION
    rendered = adapter.render([system, {"role": "user", "content": content}], None)
    runs = [
        TokenRun(segment.ids, len(segment.ids), images=_image_slots(segment, images, image_table))
        for segment in rendered.segments
    ]
    expanded = expand(
        [*runs, TokenRun(rendered.generation_prompt, len(rendered.generation_prompt))], pad_id=adapter.pad_id
    )
    request_id = f"doctor-{secrets.token_hex(4)}"
    return GenerateRequest(
        request_id=request_id,
        session_id=request_id,
        prompt=concat_ids(*(run.ids for run in runs), rendered.generation_prompt),
        images=image_table.references(expanded.placeholders),
        expanded_prompt=expanded.ids,
        known_token_count=0,
        placeholders=expanded.placeholders,
        pad_id=adapter.pad_id,
        sampling={"temperature": 0.0, "max_tokens": 1},
        stop_token_ids=adapter.stop_token_ids,
    )


def _image_slots(
    segment: MessageSegment, images: Sequence[PreparedImage], image_table: ImageTable
) -> tuple[ImageSlot, ...]:
    """Return the image slots of a message. The question contains all images, the other messages contain none."""
    hashes = [image.asset.mm_hash for image in images] if segment.image_offsets else []
    return tuple(
        ImageSlot(mm_hash, offset, image_table.token_count(mm_hash))
        for mm_hash, offset in zip(hashes, segment.image_offsets, strict=True)
    )


def _noise_picture(size: tuple[int, int]) -> Image.Image:
    """Return a new image of random noise, so that no cache contains it."""
    pixels = np.random.default_rng(secrets.randbits(64)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)
