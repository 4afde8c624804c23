"""Memory for decoding: an image that needs too much by itself is refused; others wait for free memory."""

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY, decoding_bytes, shared_decoding_memory
from rollout.images import (
    ImageError,
    ImageLimits,
    ImageMemoryError,
    ImagePolicy,
    decoded_image,
    prepare_images,
    prepare_images_async,
)

DEADLINE = 10.0


def as_user(image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}]}]


def large_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_an_image_that_needs_too_much_memory_is_refused_and_the_key_is_named(encode: Any, tmp_path: Path) -> None:
    policy = ImagePolicy("offload", tmp_path, memory=1_050_000)
    with pytest.raises(ImageError, match=r"takes 1,0\d\d,\d{3} bytes of memory, but images\.memory allows 1,050,000"):
        prepare_images(as_user(encode("PNG", mode="RGBA", width=40, height=40)), policy)
    # The header of this one proves that it can be decoded, so a worker need not do it.
    assert prepare_images(as_user(encode("JPEG", width=40, height=40)), policy).images


def test_a_file_that_pillow_has_not_decoded_yet_must_obey_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(large_png(5_800, 5_800))
    with Image.open(path) as image, pytest.raises(ImageError, match=r"images.max_pixels allows 33,554,432"):
        prepare_images(as_user(image), ImagePolicy("offload", tmp_path / "images"))
    with Image.open(path) as image, pytest.raises(ImageError, match=r"images.memory allows 100,000,000"):
        prepare_images(as_user(image), ImagePolicy("offload", tmp_path / "m", max_pixels=10**8, memory=10**8))


def test_by_default_no_image_within_max_pixels_is_refused_for_its_memory(encode: Any) -> None:
    limits = ImageLimits()
    for format_name, mode in [("PNG", "LA"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB")]:
        with Image.open(io.BytesIO(encode(format_name, mode=mode))) as image:
            needed = decoding_bytes(
                bytes(20_000_000),
                image_format=image.format,
                mode=image.mode,
                pixels=limits.max_pixels,
                transparency=True,
            )
            assert needed <= DEFAULT_DECODING_MEMORY, format_name


async def test_a_wait_for_memory_can_be_cancelled_and_stores_nothing(encode: Any, tmp_path: Path) -> None:
    policy = ImagePolicy("offload", tmp_path / "images", memory=1_200_000)
    memory, data = shared_decoding_memory(1_200_000), encode("PNG", mode="RGBA")
    with memory.hold(1_200_000):
        task = asyncio.create_task(prepare_images_async(as_user(data), policy))
        async with asyncio.timeout(DEADLINE):
            while not memory._waiting:  # noqa: ASYNC110 - a thread does it
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while memory._waiting:  # noqa: ASYNC110 - a thread does it
                await asyncio.sleep(0.001)
    assert list(policy.directory.iterdir()) == []
    assert (await prepare_images_async(as_user(data), policy)).bytes_written == len(data)


def test_a_full_memory_is_an_error_of_the_infrastructure(encode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("renderers_adapter.decoding_memory._LONGEST_WAIT", 0.01)
    memory = shared_decoding_memory(1_300_000)
    with (
        memory.hold(1_300_000),
        pytest.raises(ImageMemoryError, match="did not become free") as caught,
        decoded_image(encode("PNG"), ImageLimits(), memory),
    ):
        pass
    assert caught.value.infrastructure


def test_the_memory_for_processing_is_part_of_the_estimate(encode: Any) -> None:
    memory = shared_decoding_memory(2_000_000)
    with decoded_image(encode("PNG"), ImageLimits(), memory, processing_bytes=1_900_000) as image:
        assert image.size == (12, 8)
    with (
        pytest.raises(ImageError, match=r"images\.memory"),
        decoded_image(encode("PNG"), ImageLimits(), memory, processing_bytes=2_000_000),
    ):
        pass
