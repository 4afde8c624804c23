"""A forward pass with packed samples gives the same log-probs as one with each sample alone."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from renderers_adapter.creation import load_processor_config
from renderers_adapter.descriptors import raw_mm_item
from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.tokens import ExpandedIds, Placeholder
from rollout.environments.color_codeword import ColorCodeword
from rollout.images import ImagePolicy, prepare_images
from rollout.images.processors import family_of_checkpoint
from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.testing import embedded_policy, play
from rollout.trainer import Batch, Group, Materializer, TrainingSample, batch_of, collate
from rollout.trainer.batches.materialize import MaterializeError

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

FAMILIES = ("qwen3-vl", "qwen2.5-vl")
CLOSE = 1e-5
SIZES = [(64, 64), (300, 90), (90, 300), (200, 210)]
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Use one thread; for such small matrices, several are slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The directory of a tiny checkpoint, made once for each family."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(family: str) -> Path:
        if not (root / family).exists():
            make_checkpoint(root / family, family)
        return root / family

    return made


def model_of(checkpoint: Path, **options: Any) -> Any:
    automatic = (
        transformers.AutoModelForImageTextToText if has_images(checkpoint) else transformers.AutoModelForCausalLM
    )
    return automatic.from_pretrained(checkpoint, dtype=torch.float32, **options).eval()


def has_images(checkpoint: Path) -> bool:
    return (checkpoint / "preprocessor_config.json").exists()


def geometry_of(checkpoint: Path) -> Geometry:
    return geometry_for("qwen_vl", load_processor_config(checkpoint))


def text_of(length: int, seed: int) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(1, 200, length)]


def sample_of(parts: Sequence[int | dict[str, Any]], geometry: Geometry | None = None, pad: int = 0) -> TrainingSample:
    """Return a sample with these parts: a number of text tokens, or the descriptor of an image."""
    ids: list[int] = []
    placeholders: list[Placeholder] = []
    for part in parts:
        if isinstance(part, int):
            ids += text_of(part, seed=len(ids))
        else:
            assert geometry is not None
            length = geometry.tokens(geometry.grid(part["payload"]))
            placeholders.append(Placeholder(part["raw_image_id"][:32], len(ids), length))
            ids += [pad] * length
    token_types = np.zeros(len(ids), np.uint8)
    for placeholder in placeholders:
        token_types[placeholder.offset : placeholder.offset + placeholder.length] = 1
    return TrainingSample(
        rollout="rollout-7",
        group="group-1",
        leaf=3,
        reward=1.0,
        token_ids=ExpandedIds(np.array(ids, np.int32)),
        mask=token_types == 0,
        logprobs=np.zeros(len(ids), np.float32),
        token_types=token_types,
        version_index=np.full(len(ids), -1, np.int32),
        versions=(),
        turn_index=np.full(len(ids), -1, np.int32),
        turns=(),
        token_rewards=np.zeros(len(ids), np.float32),
        content=np.zeros(len(ids), np.uint8),
        placeholders=tuple(placeholders),
        images=tuple(part for part in parts if not isinstance(part, int)),
        image_directory="/nonexistent",
    )


def descriptor(geometry: Geometry, grid: tuple[int, int, int], file_name: str = "0" * 64 + ".png") -> dict[str, Any]:
    payload = {geometry.grid_key: [list(grid)]}
    return raw_mm_item(
        family=geometry.family, fingerprint=geometry.fingerprint, payload=payload, raw_image_id=file_name
    )


@pytest.fixture
def samples_with_images(tmp_path: Path) -> Callable[[Path], list[TrainingSample]]:
    """Makes samples of different lengths for a checkpoint: with no image, with one, with all, and with one twice."""

    def made(checkpoint: Path) -> list[TrainingSample]:
        geometry, config = geometry_of(checkpoint), transformers.AutoConfig.from_pretrained(checkpoint)
        pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        pictures = [Image.fromarray(pixels[:height, :width]) for width, height in SIZES]
        parts = [{"type": "image", "image": picture} for picture in pictures]
        policy = ImagePolicy(mode="offload", directory=tmp_path / "images")
        items = []
        for prepared in prepare_images([{"role": "user", "content": parts}], policy).images:
            layout = geometry.layout(width=prepared.asset.width, height=prepared.asset.height)
            items.append(descriptor(geometry, layout.grid, prepared.asset.file_name))
        contents: list[list[int | dict[str, Any]]] = [
            [5, items[0], 7],
            [19],
            [1, items[1], 2, items[2], 3, items[3], 1, items[0], 4],
            [items[2], 6],
            [3, items[1], 1, items[1], 9],
        ]
        return [
            replace(sample_of(content, geometry, config.image_token_id), image_directory=str(policy.directory))
            for content in contents
        ]

    return made


def logprobs_of(batch: Batch, logits: Any) -> list[Any]:
    """Return the log-probs of the tokens of each sample, without its first token."""
    return [
        logits[row, start : start + length - 1]
        .log_softmax(-1)
        .gather(-1, batch.token_ids[row, start + 1 : start + length, None])[:, 0]
        for row, start, length in batch.spans.tolist()
    ]


def forward(model: Any, batch: Batch) -> dict[int, Any]:
    """Return the log-probs of each sample, by the identity of the sample."""
    with torch.no_grad():
        logits = model(**batch.model_inputs()).logits
    assert torch.isfinite(logits).all()
    return dict(zip(map(id, batch.samples), logprobs_of(batch, logits), strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_samples_have_the_logprobs_of_each_sample_alone(
    checkpoint: Checkpoint,
    samples_with_images: Callable[[Path], list[TrainingSample]],
    family: str,
    attention: str,
) -> None:
    directory = checkpoint(family)
    model = model_of(directory, attn_implementation=attention)
    given_samples = samples_with_images(directory)
    materializer = Materializer.from_pretrained(directory, backend="pil")
    total = sum(len(sample.token_ids) for sample in given_samples)
    packed = collate(given_samples, packing=total, min_rows=2, materializer=materializer)
    alone = collate(given_samples, materializer=materializer)
    assert packed.token_ids.shape == (2, total)
    assert alone.token_ids.shape[0] == len(given_samples)
    in_one_row, in_own_row = forward(model, packed), forward(model, alone)
    for sample in given_samples:
        ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
        types = torch.from_numpy(sample.token_types.astype(np.int32))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=types, **materializer.inputs([sample])).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        assert (in_own_row[id(sample)] - theirs).abs().max() < CLOSE
        assert (in_one_row[id(sample)] - theirs).abs().max() < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_samples_without_images_have_the_logprobs_of_each_sample_alone(
    checkpoint: Checkpoint, family: str
) -> None:
    model, given_samples = model_of(checkpoint(family)), [sample_of([length]) for length in (9, 30, 4)]
    materializer = Materializer.from_pretrained(checkpoint(family), backend="pil")
    packed = forward(model, collate(given_samples, packing=50, materializer=materializer))
    alone = forward(model, collate(given_samples, materializer=materializer))
    for sample in given_samples:
        assert (packed[id(sample)] - alone[id(sample)]).abs().max() < CLOSE


def test_packed_samples_of_a_text_only_model_have_the_logprobs_of_each_sample_alone(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint("text"))
    given_samples = [sample_of([length]) for length in (9, 30, 4)]
    packed, alone = forward(model, collate(given_samples, packing=50)), forward(model, collate(given_samples))
    for sample in given_samples:
        assert (packed[id(sample)] - alone[id(sample)]).abs().max() < CLOSE


@st.composite
def contents(draw: st.DrawFn) -> list[int | tuple[int, int, int]]:
    """Draw the parts of a sample. Text is between any two images, as in every chat template."""
    parts: list[int | tuple[int, int, int]] = [draw(st.integers(0, 5))]
    for _ in range(draw(st.integers(1, 4))):
        parts += [(1, 2 * draw(st.integers(1, 9)), 2 * draw(st.integers(1, 9))), draw(st.integers(1, 5))]
    return parts


@pytest.fixture(scope="module")
def models(checkpoint: Checkpoint) -> dict[str, tuple[Any, Materializer, Geometry]]:
    """For each family, the model, the materializer and the geometry."""
    return {
        family: (
            model_of(checkpoint(family)).model,
            Materializer.from_pretrained(checkpoint(family), backend="pil"),
            geometry_of(checkpoint(family)),
        )
        for family in FAMILIES
    }


@given(family=st.sampled_from(FAMILIES), parts=contents())
def test_positions_are_those_of_transformers(
    models: dict[str, tuple[Any, Materializer, Geometry]], family: str, parts: list[int | tuple[int, int, int]]
) -> None:
    model, materializer, geometry = models[family]
    grids = [part for part in parts if not isinstance(part, int)]
    sample = sample_of([part if isinstance(part, int) else descriptor(geometry, part) for part in parts], geometry)
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    types = torch.from_numpy(sample.token_types.astype(np.int32))[None]
    theirs, _ = model.get_rope_index(ids, types, image_grid_thw=torch.tensor(grids))
    assert materializer.positions(sample).tolist() == theirs[:, 0].tolist()


def test_a_batch_with_images_but_no_pixels_is_refused(
    checkpoint: Checkpoint, samples_with_images: Callable[[Path], list[TrainingSample]]
) -> None:
    batch = collate(samples_with_images(checkpoint("qwen3-vl")))
    with pytest.raises(ValueError, match=r"no pixels. Give `materializer=Materializer.from_pretrained\(checkpoint\)`"):
        batch.model_inputs()


def test_pixels_and_positions_move_to_a_device_with_the_batch(
    checkpoint: Checkpoint, samples_with_images: Callable[[Path], list[TrainingSample]]
) -> None:
    directory = checkpoint("qwen3-vl")
    materializer = Materializer.from_pretrained(directory, backend="pil")
    inputs = collate(samples_with_images(directory), materializer=materializer).to("meta").model_inputs()
    assert {name: value.device.type for name, value in inputs.items() if name != "use_cache"} == dict.fromkeys(
        ("input_ids", "position_ids", "pixel_values", "image_grid_thw"), "meta"
    )


def test_kimi_needs_one_position_for_each_token() -> None:
    colors = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sizes = {"size": {"max_height": 64, "max_width": 64}}
    config = {"patch_size": 14, "merge_size": 2, "max_patches": 200, **sizes, **colors}
    materializer = Materializer("kimi_k25", config, backend="pil")
    sample = sample_of(
        [4, descriptor(geometry_for("kimi_k25", config), (1, 4, 2)), 3], geometry_for("kimi_k25", config)
    )
    assert materializer.positions(sample).tolist() == [list(range(9))]
    assert collate([sample_of([3])], materializer=materializer).rope_positions is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_a_checkpoint_is_found(checkpoint: Checkpoint, family: str) -> None:
    assert family_of_checkpoint(checkpoint(family)) == "qwen_vl"


def test_images_come_from_the_directory_of_the_sample_or_from_the_given_one(
    checkpoint: Checkpoint, samples_with_images: Callable[[Path], list[TrainingSample]], tmp_path: Path
) -> None:
    directory = checkpoint("qwen3-vl")
    sample = samples_with_images(directory)[0]
    expected = Materializer.from_pretrained(directory, backend="pil").inputs([sample])["pixel_values"]
    moved = (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(MaterializeError, match=f"missing in {tmp_path / 'images'}"):
        Materializer.from_pretrained(directory, backend="pil").inputs([sample])
    there = Materializer.from_pretrained(directory, backend="pil", images=moved)
    assert torch.equal(there.inputs([sample])["pixel_values"], expected)


async def test_a_process_of_a_loader_makes_the_pixels_of_a_rollout(checkpoint: Checkpoint, tmp_path: Path) -> None:
    async with embedded_policy(tmp_path) as policy:
        played = await play(ColorCodeword, {"codeword": ["red", "blue", "green"]}, policy=policy)
    groups = [Group(played.trajectory.group, 1, (played.trajectory,))]
    materializer = Materializer.from_pretrained(checkpoint("qwen3-vl"), backend="pil")
    expected = batch_of(groups, materializer=materializer)
    assert expected is not None
    assert len(expected.pixels["image_grid_thw"]) == 3
    made: list[Batch] = list(
        DataLoader(
            [groups],
            batch_size=None,
            collate_fn=partial(batch_of, materializer=materializer),
            num_workers=1,
            multiprocessing_context="spawn",
        )
    )
    assert torch.equal(made[0].pixels["pixel_values"], expected.pixels["pixel_values"])
    assert torch.equal(made[0].model_inputs()["position_ids"], expected.model_inputs()["position_ids"])
