"""Manages the directory from which engines load the weights of a policy. It checks new weights before engines see them.

    weights = WeightsDirectory(Path("/runs/one/policy"))
    weights.replace(7, model.save_pretrained)

A new version is written to a subdirectory. Then the headers of its files are checked, and the files replace the old
files one by one. A process that has an old file open can still read it. The version file exists only while the weights
are complete. The check is needed because an engine that loads a damaged file answers with status 500, and exits at the
next request.
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
"""A function that writes all weights to a directory as safetensors files, such as `model.save_pretrained`."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by the tensor's name."""

_VERSION_FILE = "policy_version.json"
_INCOMING_DIRECTORY = ".incoming"
_LOCK_FILE = ".publisher.lock"
_INDEX_FILE = "model.safetensors.index.json"
_MAX_NAMES_SHOWN = 3


class WeightsError(RolloutError):
    """The weights are damaged or belong to another model; no engine has loaded them."""


class WeightsHeld(RolloutError):
    """Another process publishes from this directory. Two publishers could use one version for different weights."""


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """Identifies one saved set of weights.

    Attributes:
        version: the number of the version.
        nonce: a random string. If the same number is saved again, for example after a return to a checkpoint, the nonce
            is different.
    """

    version: int
    nonce: str


@dataclass(frozen=True, slots=True)
class WeightsDirectory:
    """Manages a directory that contains one version of the weights.

    Attributes:
        path: the directory; `lock` and `replace` create it.
        reference: the directory of a checkpoint. The first version must have the same tensors and shapes; None: the
            first version is not compared.
    """

    path: Path
    reference: Path | None = None

    @property
    def saved_version(self) -> SavedVersion | None:
        """The version in the directory; None if there is no version, or if its files were not all moved."""
        try:
            content = orjson.loads((self.path / _VERSION_FILE).read_bytes())
            return SavedVersion(int(content["version"]), str(content["nonce"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{self.path / _VERSION_FILE} does not contain a valid version ({error!r}). Publish the weights again."
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory, so that no other process publishes from it. Raises WeightsHeld if one already does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WeightsHeld(
                    f"{self.path}: another process publishes weights from this directory. Stop it, or use another "
                    "directory."
                ) from None
            yield

    def replace(self, version: int, save: Saver) -> None:
        """Save a version, and replace the previous version with it.

        Args:
            version: the number of the version.
            save: writes the weights to the directory that is its argument.

        Raises:
            WeightsError: the new weights cannot be saved or read, or their tensors differ from those of this model.
                The old version stays.
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
        """Replace the old files with the new ones."""
        (self.path / _VERSION_FILE).unlink(missing_ok=True)
        incoming_names = {file.name for file in incoming.iterdir() if file.is_file()}
        for old in (*self.path.glob("*.safetensors"), self.path / _INDEX_FILE):
            if old.name not in incoming_names:
                old.unlink(missing_ok=True)  # if there are fewer shards now, an engine would also load the old ones
        for name in sorted(incoming_names):
            os.replace(incoming / name, self.path / name)


def read_shapes(directory: Path) -> Shapes:
    """Return the shape of every tensor in a checkpoint's directory. This reads only the headers of the files.

    Raises:
        WeightsError: a file is missing, incomplete or malformed, or the files contradict each other.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} contains no *.safetensors file. The saver must write the weights there.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _header_shapes(file).items():
            if name in shapes:
                raise WeightsError(f"{file} and another file in its directory both contain the tensor {name}.")
            shapes[name] = shape
    index = directory / _INDEX_FILE
    if index.exists():
        _require_matching_index(index, shapes)
    return shapes


def _header_shapes(file: Path) -> Shapes:
    try:
        # Open the file first to get the real error, because safe_open reports "No such file" for every error.
        with file.open("rb"), safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}. Save the weights again.") from None


def _require_matching_index(index: Path, shapes: Shapes) -> None:
    try:
        indexed_names = set(orjson.loads(index.read_bytes())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}. Save the weights again.") from None
    if indexed_names != set(shapes):
        raise WeightsError(
            f"{index} does not match the files next to it. Only one of them names these tensors: "
            f"{_shortened_list(indexed_names ^ set(shapes))}."
        )


def _require_same_shapes(shapes: Shapes, expected: Shapes, saved_directory: Path, reference_directory: Path) -> None:
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    reshaped = {name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]}
    for problem, names in (("lack", missing), ("have the extra tensors", extra), ("have other shapes of", reshaped)):
        if names:
            raise WeightsError(
                f"compared with {reference_directory}, the weights that were saved in {saved_directory} {problem} "
                f"{_shortened_list(names)}. Save the whole model, with the tensor names of the checkpoint that the "
                "engines serve."
            )


def _shortened_list(names: set[str]) -> str:
    """Return the first names, and the number of the others."""
    shown = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown} and {len(names) - _MAX_NAMES_SHOWN} more"
