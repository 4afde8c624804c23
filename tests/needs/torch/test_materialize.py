"""Materialised pixels equal those of transformers' processor, and wrong images are refused."""

import base64
import contextlib
import hashlib
import importlib
import io
import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from renderers_adapter.descriptors import raw_mm_item
from renderers_adapter.geometry import geometry_for
from renderers_adapter.geometry.kimi_k25 import KimiK25Geometry
from renderers_adapter.tokens import ExpandedIds, Placeholder
from rollout.images import ImagePolicy, prepare_images
from rollout.images.processors import PixelKind
from rollout.trainer.batches.materialize import MaterializeError, Materializer
from rollout.trainer.batches.samples import TrainingSample
from tests.needs.torch.processors import QWEN

torch: Any = importlib.import_module("torch")
transformers_qwen: Any = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
Qwen2VLImageProcessorPil = transformers_qwen.Qwen2VLImageProcessorPil

KIMI: dict[str, Any] = {
    "media_proc_cfg": {
        "patch_size": 14,
        "merge_kernel_size": 2,
        "in_patch_limit": 200,
        "patch_limit_on_one_side": 512,
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
    }
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 7 + 2, width // 7 + 2, 4), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def oriented(format_name: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(picture(90, 50).convert("RGB"), format_name, exif=exif)


RGBA, RGB = picture(231, 117), picture(231, 117).convert("RGB")
FILES: dict[str, bytes] = {
    "RGB png": save(RGB, "PNG"),
    "RGB jpeg": save(RGB, "JPEG"),
    "RGB webp": save(RGB, "WEBP"),
    "RGB bmp": save(RGB, "BMP"),
    "tiny": save(picture(1, 1), "PNG"),
    "thin": save(picture(300, 2).convert("RGB"), "PNG"),
    "large": save(picture(800, 600).convert("RGB"), "JPEG"),
    "RGBA png": save(RGBA, "PNG"),
    "RGBA webp": save(RGBA, "WEBP"),
    "LA": save(RGBA.convert("LA"), "PNG"),
    "L": save(RGBA.convert("L"), "PNG"),
    "palette with transparency": save(RGB.quantize(32), "PNG", transparency=3),
    "CMYK": save(RGB.convert("CMYK"), "JPEG"),
    "animated gif": save(RGB.quantize(32), "GIF", save_all=True, append_images=[picture(231, 117, 5).convert("RGB")]),
    "animated webp": save(RGBA, "WEBP", save_all=True, append_images=[picture(231, 117, 5)]),
    **{f"{name} orientation {turn}": oriented(name, turn) for name in ("JPEG", "PNG", "WEBP") for turn in range(1, 9)},
}


def as_the_engine_loads(data: bytes) -> Image.Image:
    """Load an image by the same rule as our loader, written independently."""
    image: Image.Image = Image.open(io.BytesIO(data))
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode != "RGB" and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


Sampled = Callable[..., TrainingSample]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "assets" / "images"


@pytest.fixture
def sampled(directory: Path) -> Sampled:
    """`sampled([data, …])`: a training sample with these images, described as a worker describes them."""

    def make(
        datas: Sequence[bytes], *, family: str = "qwen_vl", config: dict[str, Any] = QWEN, mode: Any = "offload"
    ) -> TrainingSample:
        geometry = geometry_for(family, config)
        parts = [{"type": "image", "image": data} for data in datas]
        report = prepare_images([{"role": "user", "content": parts}], ImagePolicy(mode=mode, directory=directory))
        placeholders, items, offset = [], [], 0
        for image in [prepared.asset for prepared in report.images]:
            layout = geometry.layout(width=image.width, height=image.height)
            source = {"raw_image_id": image.file_name} if mode == "offload" else {"raw_uri": image.url}
            payload = geometry.payload(layout)
            items.append(raw_mm_item(family=family, fingerprint=geometry.fingerprint, payload=payload, **source))
            placeholders.append(Placeholder(image.mm_hash, offset, layout.tokens))
            offset += layout.tokens
        return sample_of(placeholders, items)

    return make


def sample_of(placeholders: Sequence[Placeholder], items: Sequence[dict[str, Any]]) -> TrainingSample:
    none = np.zeros(0, np.int32)
    return TrainingSample(
        rollout="rollout-7",
        group="group-1",
        leaf=3,
        reward=1.0,
        token_ids=ExpandedIds(none),
        mask=none.astype(np.bool_),
        logprobs=none.astype(np.float32),
        token_types=none.astype(np.uint8),
        version_index=none.astype(np.int16),
        versions=(),
        turn_index=none,
        turns=(),
        token_rewards=none.astype(np.float32),
        content=none.astype(np.uint8),
        placeholders=tuple(placeholders),
        images=tuple(items),
        image_directory="/nonexistent",
    )


def changed(sample: TrainingSample, **changes: Any) -> TrainingSample:
    return sample_of(sample.placeholders, [{**sample.images[0], **changes}])


def qwen(directory: Path, **options: Any) -> Materializer:
    return materializer("qwen_vl", QWEN, images=directory, **options)


def materializer(
    family: str, config: dict[str, Any], *, pixels: PixelKind = "normalised", **options: Any
) -> Materializer:
    return Materializer(family, config, backend="pil", pixels=pixels, **options)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_transformers_to_the_bit(name: str, directory: Path, sampled: Sampled) -> None:
    inputs = qwen(directory).inputs([sampled([FILES[name]])])
    processor = Qwen2VLImageProcessorPil.from_dict(QWEN)
    expected = processor(images=[as_the_engine_loads(FILES[name])], return_tensors="pt")
    assert set(inputs) == {"pixel_values", "image_grid_thw"}
    assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])
    assert inputs["pixel_values"].dtype == torch.float32
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("name", FILES)
def test_uint8_patches_are_those_before_rescaling(name: str, directory: Path, sampled: Sampled) -> None:
    inputs = qwen(directory, pixels="uint8").inputs([sampled([FILES[name]])])
    processor = Qwen2VLImageProcessorPil.from_dict({**QWEN, "do_rescale": False, "do_normalize": False})
    expected = processor(images=[as_the_engine_loads(FILES[name])], return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].dtype == torch.uint8
    assert torch.equal(inputs["pixel_values"].float(), expected)


def test_several_samples_are_one_batch_in_order(directory: Path, sampled: Sampled) -> None:
    names = ["RGB png", "large", "JPEG orientation 6", "RGB png"]
    samples = [sampled([FILES[name] for name in names[:2]]), sampled([]), sampled([FILES[name] for name in names[2:]])]
    inputs = qwen(directory).inputs(samples)
    processor = Qwen2VLImageProcessorPil.from_dict(QWEN)
    expected = processor(images=[as_the_engine_loads(FILES[name]) for name in names], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])


def test_samples_without_images_have_no_pixel_inputs(directory: Path, sampled: Sampled) -> None:
    assert qwen(directory).inputs([sampled([]), sampled([])]) == {}


def test_inline_images_come_from_their_uri(directory: Path, sampled: Sampled) -> None:
    data = [FILES["RGBA png"]]
    offloaded = qwen(directory).inputs([sampled(data)])["pixel_values"]
    inline = qwen(directory / "empty").inputs([sampled(data, mode="inline")])["pixel_values"]
    assert torch.equal(offloaded, inline)


def by_hand(image: Image.Image, config: dict[str, Any]) -> tuple[Any, tuple[int, int]]:
    """Return Kimi's uint8 canvas, scaled by Pillow with zeros to the right and below, and its grid."""
    width, height = KimiK25Geometry.from_processor_config(config).resized(width=image.width, height=image.height)
    rows, columns = -(-height // 28) * 2, -(-width // 28) * 2
    canvas = Image.new("RGB", (columns * 14, rows * 14))
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC))
    return np.asarray(canvas), (rows, columns)


@pytest.mark.parametrize("name", FILES)
def test_kimis_patches_are_those_of_the_engine(name: str, directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES[name]], family="kimi_k25", config=KIMI)
    canvas, (rows, columns) = by_hand(as_the_engine_loads(FILES[name]), KIMI)
    raw = materializer("kimi_k25", KIMI, pixels="uint8", images=directory).inputs([sample])
    normalised = materializer("kimi_k25", KIMI, images=directory).inputs([sample])["pixel_values"].numpy()
    assert raw["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert normalised.dtype == np.float32
    mean, std = np.float32(KIMI["media_proc_cfg"]["image_mean"]), np.float32(KIMI["media_proc_cfg"]["image_std"])
    for index, patch in enumerate(raw["pixel_values"].numpy()):
        row, column = divmod(index, columns)
        square = canvas[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        assert np.array_equal(patch, square.transpose(2, 0, 1))
        expected = (square.astype(np.float32) / 255.0 - mean) * (np.float32(1.0) / std)
        assert np.array_equal(normalised[index], expected.transpose(2, 0, 1))


def refused(materializer: Materializer, sample: TrainingSample, reason: str) -> MaterializeError:
    with pytest.raises(MaterializeError, match=reason) as caught:
        materializer.inputs([sample])
    assert str(caught.value).startswith("rollout rollout-7, branch of node 3, image ")
    return caught.value


def test_a_missing_image_is_named(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    name = str(sample.images[0]["raw_image_id"])
    (directory / name).unlink()
    error = refused(qwen(directory), sample, "missing")
    assert (error.rollout, error.node, error.file) == ("rollout-7", 3, name)


def test_a_changed_image_is_named(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    (directory / str(sample.images[0]["raw_image_id"])).write_bytes(FILES["RGB jpeg"])
    refused(qwen(directory), sample, "no longer have the hash")


def test_an_image_of_another_hash_is_refused(directory: Path, sampled: Sampled) -> None:
    sample, other = sampled([FILES["RGB png"]]), sampled([FILES["RGB bmp"]])
    refused(qwen(directory), changed(sample, raw_image_id=other.images[0]["raw_image_id"]), "is for the image")
    inline = sampled([FILES["RGB png"]], mode="inline")
    uri = "data:image/png;base64," + base64.b64encode(FILES["RGB bmp"]).decode()
    refused(qwen(directory), changed(inline, raw_uri=uri), "do not have the hash")


def test_a_layout_of_another_configuration_is_refused(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    refused(qwen(directory), changed(sample, layout_fingerprint="0" * 32), "fingerprint is qwen_vl 0000")
    refused(qwen(directory), changed(sample, layout_fingerprint="0" * 32), "this checkpoint as model.path")
    refused(qwen(directory), changed(sample, family="kimi_k25"), "fingerprint is kimi_k25")


def test_patches_that_do_not_fill_their_placeholders_are_refused(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    [placeholder] = sample.placeholders
    longer = sample_of([Placeholder(placeholder.hash, 0, placeholder.length + 1)], [dict(sample.images[0])])
    refused(qwen(directory), longer, "tokens, but its placeholder has")


def test_a_described_grid_that_the_pixels_do_not_have_is_refused(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    [[_, rows, columns]] = sample.images[0]["payload"]["image_grid_thw"]
    turned = changed(sample, payload={"image_grid_thw": [[1, columns, rows]]})
    refused(qwen(directory), turned, "but its pixels have the grid")


@pytest.mark.parametrize("payload", [{}, {"image_grid_thw": "1x2x3"}, {"pixel_values": [1]}])
def test_an_unusable_payload_is_refused(payload: dict[str, Any], directory: Path, sampled: Sampled) -> None:
    refused(qwen(directory), changed(sampled([FILES["RGB png"]]), payload=payload), "payload")


def test_an_escape_from_the_image_directory_is_refused(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    refused(qwen(directory), changed(sample, raw_image_id=".."), "is for the image")


def test_an_uri_that_does_not_decode_is_refused(directory: Path) -> None:
    data = b"no image at all"
    geometry = geometry_for("qwen_vl", QWEN)
    layout = geometry.layout(width=64, height=64)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    item = raw_mm_item(
        family="qwen_vl", fingerprint=geometry.fingerprint, payload=geometry.payload(layout), raw_uri=uri
    )
    placeholder = Placeholder(hashlib.sha256(data).hexdigest()[:32], 0, layout.tokens)
    refused(qwen(directory), sample_of([placeholder], [item]), "not an accepted image")


def test_a_link_in_the_image_directory_is_refused(directory: Path, sampled: Sampled) -> None:
    sample = sampled([FILES["RGB png"]])
    file = directory / str(sample.images[0]["raw_image_id"])
    file.symlink_to(file.rename(directory / "elsewhere"))
    refused(materializer("qwen_vl", QWEN), replace(sample, image_directory=str(directory)), "cannot be read")


def test_an_image_directory_that_is_a_pipe_is_refused(directory: Path, sampled: Sampled, tmp_path: Path) -> None:
    sample = sampled([FILES["RGB png"]])
    os.mkfifo(tmp_path / "pipe")
    refused(materializer("qwen_vl", QWEN), replace(sample, image_directory=str(tmp_path / "pipe")), "Not a directory")


def test_a_pickled_materializer_makes_the_same_pixels(directory: Path, sampled: Sampled) -> None:
    sample, used = sampled([FILES["RGB png"]]), qwen(directory, memory=50_000_000)
    expected = used.inputs([sample])["pixel_values"]
    assert torch.equal(pickle.loads(pickle.dumps(used)).inputs([sample])["pixel_values"], expected)
    with pytest.raises(MaterializeError, match="allows 1,000,000"):
        pickle.loads(pickle.dumps(qwen(directory, memory=1_000_000))).inputs([sample])


def test_threads_that_want_the_same_image_process_it_once(
    directory: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, materializer = sampled([FILES["large"]]), qwen(directory)
    processed: list[int] = []
    process = materializer._processor.process

    def counted(image: Image.Image) -> Any:
        processed.append(1)
        return process(image)

    monkeypatch.setattr(materializer._processor, "process", counted)
    barrier, results = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait(30)
        results.append(materializer.inputs([sample])["pixel_values"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(processed) == 1
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_caller_cannot_change_the_cached_pixels(directory: Path, sampled: Sampled) -> None:
    sample, materializer = sampled([FILES["RGB png"]]), qwen(directory)
    first = materializer.inputs([sample])["pixel_values"]
    expected = first.clone()
    first.zero_()
    assert torch.equal(materializer.inputs([sample])["pixel_values"], expected)


def test_peak_memory_is_that_of_the_requested_pixels(directory: Path, sampled: Sampled) -> None:
    samples = [sampled([save(picture(160, 160, seed).convert("RGB"), "PNG")]) for seed in range(30)]
    materializer = qwen(directory, cache_bytes=0)
    materializer.inputs(samples[:1])
    one = materializer.inputs(samples[:1])["pixel_values"].nbytes
    tracemalloc.start()
    for sample in samples:
        materializer.inputs([sample])
    each_alone = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    together = materializer.inputs(samples)["pixel_values"]
    at_once = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert together.nbytes == 30 * one
    assert each_alone < 8 * one
    assert at_once < together.nbytes + 8 * one


def test_an_image_that_takes_too_much_memory_is_refused(sampled: Sampled, directory: Path) -> None:
    sample = sampled([FILES["large"]])
    materializer = qwen(directory, memory=4_000_000)
    with pytest.raises(MaterializeError, match=r"rollout-7.* but Materializer\(memory=…\) allows 4,000,000"):
        materializer.inputs([sample])
    assert len(qwen(directory).inputs([sample])["pixel_values"])


def test_a_bomb_under_the_right_name_is_refused_before_it_is_decoded(sampled: Sampled, directory: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    (directory / f"{sha256}.png").parent.mkdir(parents=True, exist_ok=True)
    (directory / f"{sha256}.png").write_bytes(file.getvalue())
    sample = changed(sampled([FILES["large"]]), raw_image_id=f"{sha256}.png")
    placeholder = Placeholder(sha256[:32], 0, sample.placeholders[0].length)
    materializer = qwen(directory)
    with pytest.raises(MaterializeError, match="a decompression bomb"):
        materializer.inputs([sample_of([placeholder], [dict(sample.images[0])])])
