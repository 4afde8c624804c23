"""The directory that engines load weights from: a version in it can always be loaded."""

import struct
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from rollout.trainer.weights.directory import SavedVersion, WeightsDirectory, WeightsError, WeightsHeld, read_shapes

SHAPES = {"embed.weight": (4, 2), "head.weight": (2, 4)}
Write = Callable[..., None]


@pytest.fixture
def weights(tmp_path: Path) -> WeightsDirectory:
    return WeightsDirectory(tmp_path / "policy")


def version_of(weights: WeightsDirectory) -> int | None:
    return weights.saved_version.version if weights.saved_version else None


def test_a_version_replaces_the_earlier_one(weights: WeightsDirectory, write_weights: Write) -> None:
    assert weights.saved_version is None
    editions: set[SavedVersion | None] = set()
    for version in (0, 1, 1):  # the trainer went back and saved version 1 again
        weights.replace(version, lambda directory: write_weights(directory, SHAPES))
        editions.add(weights.saved_version)
        assert version_of(weights) == version
        assert read_shapes(weights.path) == SHAPES
    assert len(editions) == 3
    assert {file.name for file in weights.path.iterdir()} == {"model.safetensors", "policy_version.json"}


def test_a_process_with_the_old_file_open_still_reads_it(weights: WeightsDirectory, write_weights: Write) -> None:
    weights.replace(1, lambda directory: write_weights(directory, SHAPES))
    with (weights.path / "model.safetensors").open("rb") as engine:
        before = engine.read()
        weights.replace(2, lambda directory: write_weights(directory, dict(reversed(SHAPES.items()))))
        engine.seek(0)
        assert engine.read() == before != (weights.path / "model.safetensors").read_bytes()


def test_old_shards_are_removed(weights: WeightsDirectory, write_weights: Write) -> None:
    def sharded(directory: Path) -> None:
        names = {"embed.weight": "a.safetensors", "head.weight": "b.safetensors"}
        for tensor, name in names.items():
            write_weights(directory, {tensor: SHAPES[tensor]}, name)
        (directory / "model.safetensors.index.json").write_bytes(orjson.dumps({"weight_map": names}))
        (directory / "config.json").write_text("{}")

    weights.replace(1, sharded)
    assert read_shapes(weights.path) == SHAPES
    weights.replace(2, lambda directory: write_weights(directory, SHAPES))
    assert read_shapes(weights.path) == SHAPES
    assert {file.name for file in weights.path.glob("*.safetensors*")} == {"model.safetensors"}


UNREADABLE = "cannot be read as safetensors"


@pytest.mark.parametrize(
    ("damage", "expected_text"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), UNREADABLE),
        (lambda file: file.write_bytes(b"\xff" * 64), UNREADABLE),
        (lambda file: file.write_bytes(b"\x01"), UNREADABLE),
        (lambda file: file.write_bytes(b"\x04" + bytes(7) + b"null"), UNREADABLE),
        (Path.unlink, r"contains no \*.safetensors"),
    ],
    ids=["cut", "garbled", "short", "text", "missing"],
)
def test_weights_that_cannot_be_loaded_are_refused_and_the_old_version_stays(
    weights: WeightsDirectory, write_weights: Write, damage: Callable[[Path], None], expected_text: str
) -> None:
    weights.replace(1, lambda directory: write_weights(directory, SHAPES))

    def save(directory: Path) -> None:
        write_weights(directory, SHAPES)
        damage(directory / "model.safetensors")

    with pytest.raises(WeightsError, match=expected_text):
        weights.replace(2, save)
    assert version_of(weights) == 1
    assert read_shapes(weights.path) == SHAPES


@pytest.mark.parametrize(("dtype", "item_bytes"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E8M0", 1)])
def test_types_that_numpy_does_not_have_are_read(tmp_path: Path, dtype: str, item_bytes: int) -> None:
    write_sparse(tmp_path / "model.safetensors", dtype, (4, 2), item_bytes)
    assert read_shapes(tmp_path) == {"weight": (4, 2)}


def test_only_headers_are_read(tmp_path: Path) -> None:
    """The data of this file would not fit into memory."""
    write_sparse(tmp_path / "model.safetensors", "BF16", (1 << 18, 1 << 19), 2)
    assert read_shapes(tmp_path) == {"weight": (1 << 18, 1 << 19)}


def write_sparse(file: Path, dtype: str, shape: tuple[int, int], item_bytes: int) -> None:
    n_bytes = shape[0] * shape[1] * item_bytes
    header = orjson.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]}})
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + n_bytes)


@pytest.mark.parametrize(
    ("shapes", "expected_text"),
    [
        ({"embed.weight": (4, 2)}, "lack head.weight"),
        ({**SHAPES, "more.weight": (1,)}, "have the extra tensors more.weight"),
        ({**SHAPES, "head.weight": (4, 2)}, "have other shapes of head.weight"),
    ],
)
def test_another_models_tensors_are_refused(
    tmp_path: Path, write_weights: Write, shapes: dict[str, tuple[int, ...]], expected_text: str
) -> None:
    reference = tmp_path / "checkpoint"
    reference.mkdir()
    write_weights(reference, SHAPES)
    weights = WeightsDirectory(tmp_path / "policy", reference)
    with pytest.raises(WeightsError, match=expected_text):
        weights.replace(1, lambda directory: write_weights(directory, shapes))
    assert weights.saved_version is None


def test_an_index_that_names_other_tensors_is_refused(weights: WeightsDirectory, write_weights: Write) -> None:
    def save(directory: Path) -> None:
        write_weights(directory, SHAPES)
        index = {"weight_map": {"embed.weight": "model.safetensors"}}
        (directory / "model.safetensors.index.json").write_bytes(orjson.dumps(index))

    with pytest.raises(WeightsError, match=r"does not match .* head\.weight"):
        weights.replace(1, save)


def test_a_replacement_that_was_interrupted_leaves_no_version(weights: WeightsDirectory, write_weights: Write) -> None:
    weights.replace(1, lambda directory: write_weights(directory, SHAPES))

    def save(directory: Path) -> None:
        write_weights(directory, SHAPES)
        # Moving the second file fails, because its target is a directory.
        write_weights(directory, {"other": (1,)}, "z.safetensors")
        (weights.path / "z.safetensors").mkdir()
        (weights.path / "z.safetensors" / "occupied").touch()

    weights = WeightsDirectory(weights.path)
    (weights.path / "policy_version.json").unlink()  # so that other tensors are accepted, as in a new directory
    with pytest.raises(OSError, match=r"z\.safetensors"):
        weights.replace(2, save)
    assert weights.saved_version is None


def test_two_publishers_of_one_directory_are_refused(weights: WeightsDirectory) -> None:
    with weights.lock():
        with pytest.raises(WeightsHeld), WeightsDirectory(weights.path).lock():
            pass
    with weights.lock():
        pass
