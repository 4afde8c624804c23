"""The directory from which engines load a policy's weights. New weights are checked before they replace the old ones.

    weights = WeightsDirectory(Path("/runs/one/policy"))
    weights.replace(7, model.save_pretrained)

A new version is written next to the old one. Then the headers of its files are checked, and the files replace the old
ones one by one. A process that has an old file open can still read it. The file with the version exists only while the
weights are complete. The check is needed because an engine that loads a bad file answers 500 and ends at its next
request.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from safetensors import SafetensorError, safe_open

from rollout.errors import RolloutError

Saver = Callable[[Path], object]
"""Writes all weights into a directory, as safetensors, like `model.save_pretrained`."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor, by name."""

_VERSION_FILE = "policy_version.json"
_INCOMING_DIRECTORY = ".incoming"
_LOCK_FILE = ".publisher.lock"
_INDEX_FILE = "model.safetensors.index.json"
_MAX_NAMES_SHOWN = 3


class WeightsError(RolloutError):
    """The weights cannot be loaded by an engine, or belong to another model; no engine has loaded them."""


class WeightsHeld(RolloutError):
    """Another process publishes from this directory; with two publishers, one version could be two sets of weights."""


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """A saved version.

    Attributes:
        version: the number of the version.
        nonce: a random text. It differs if the same number is saved again, for example after a return to a checkpoint.
    """

    version: int
    nonce: str


@dataclass(frozen=True, slots=True)
class WeightsDirectory:
    """Holds one version of the weights at a time.

    Attributes:
        path: the directory; `lock` and `replace` create it.
        reference: the directory of a checkpoint with the same tensors as the first version must have; None: the first
            version is not compared.
    """

    path: Path
    reference: Path | None = None

    @property
    def saved_version(self) -> SavedVersion | None:
        """The version in the directory; None if there is none, or if it was not moved in completely."""
        try:
            content = orjson.loads((self.path / _VERSION_FILE).read_bytes())
            return SavedVersion(int(content["version"]), str(content["nonce"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{self.path / _VERSION_FILE} has no valid version ({error!r}); publish the weights again."
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the directory, so that no other process publishes from it; raise WeightsHeld if one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WeightsHeld(
                    f"{self.path}: another process publishes from here; it also updates engines with old weights."
                ) from None
            yield

    def replace(self, version: int, save: Saver) -> None:
        """Save a version, and replace the previous one with it.

        Args:
            version: the number of the version.
            save: writes the weights into the directory that it gets.

        Raises:
            WeightsError: the saved weights cannot be loaded, or have other tensors than this model. The old version
                stays.
        """
        incoming = self.path / _INCOMING_DIRECTORY
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        try:
            save(incoming)
        except OSError as error:
            raise WeightsError(f"the weights of version {version} cannot be written to {incoming}: {error}.") from error
        shapes = read_shapes(incoming)
        reference = self.path if self.saved_version is not None else self.reference
        if reference is not None:
            _require_same_shapes(shapes, read_shapes(reference), incoming, reference)
        self._move_in(incoming)
        version_file = incoming / _VERSION_FILE
        version_file.write_bytes(orjson.dumps(asdict(SavedVersion(version, secrets.token_hex(8)))))
        os.replace(version_file, self.path / _VERSION_FILE)
        shutil.rmtree(incoming)

    def _move_in(self, incoming: Path) -> None:
        (self.path / _VERSION_FILE).unlink(missing_ok=True)
        incoming_names = {file.name for file in incoming.iterdir() if file.is_file()}
        for old in (*self.path.glob("*.safetensors"), self.path / _INDEX_FILE):
            if old.name not in incoming_names:
                old.unlink(missing_ok=True)  # the number of shards changed; an engine would load the old ones, too
        for name in sorted(incoming_names):
            os.replace(incoming / name, self.path / name)


def read_shapes(directory: Path) -> Shapes:
    """Return the shape of every tensor of a checkpoint. Only the headers of the files are read.

    Raises:
        WeightsError: a file is missing, incomplete or malformed, or the files do not fit together.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} holds no *.safetensors; the saver must write the weights there.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _header_shapes(file).items():
            if name in shapes:
                raise WeightsError(f"{file} has the tensor {name}, and so has another file in this directory.")
            shapes[name] = shape
    index = directory / _INDEX_FILE
    if index.exists():
        _require_matching_index(index, shapes)
    return shapes


def _header_shapes(file: Path) -> Shapes:
    try:
        # Opened here too: safe_open says "No such file" for every file that it cannot open.
        with file.open("rb"), safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}. Was it saved completely?") from None


def _require_matching_index(index: Path, shapes: Shapes) -> None:
    try:
        indexed_names = set(orjson.loads(index.read_bytes())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}.") from None
    if indexed_names != set(shapes):
        raise WeightsError(
            f"{index} and the files next to it differ in {_shortened_list(indexed_names ^ set(shapes))}."
        )


def _require_same_shapes(shapes: Shapes, expected: Shapes, saved_directory: Path, reference_directory: Path) -> None:
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    reshaped = {name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]}
    for problem, names in (("lack", missing), ("have the extra tensors", extra), ("have other shapes of", reshaped)):
        if names:
            raise WeightsError(
                f"the weights that were saved in {saved_directory} {problem} {_shortened_list(names)}, compared with "
                f"{reference_directory}. Does the trainer save the whole model, under the names of the checkpoint that "
                "the engines serve?"
            )


def _shortened_list(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown} and {len(names) - _MAX_NAMES_SHOWN} more"
