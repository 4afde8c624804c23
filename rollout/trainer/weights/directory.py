"""The directory that engines load a policy's weights from; new weights are checked before they replace the old ones.

    weights = WeightsDirectory(Path("/runs/one/policy"))
    weights.replace(7, model.save_pretrained)

A new version is written beside the old one, read as an engine would read it, and then moved over it file by file. A
process that has the old files open keeps them. The file with the version exists only while the weights are complete. An
engine that loads a bad file answers 500 and dies at its next request, so every file is read here first.
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
"""Writes all weights into a directory, as safetensors; `model.save_pretrained` is one."""
Shapes = Mapping[str, tuple[int, ...]]

_VERSION_FILE = "policy_version.json"
_INCOMING_DIRECTORY = ".incoming"
_LOCK_FILE = ".publisher.lock"
_INDEX_FILE = "model.safetensors.index.json"
_MAX_NAMES_SHOWN = 3


class WeightsError(RolloutError):
    """Weights that an engine could not load, or that belong to another model; no engine has loaded them."""


class WeightsHeld(RolloutError):
    """Another process publishes from this directory; with two publishers one version name could mean two weights."""


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """A saved version.

    Attributes:
        version: the number of the version.
        nonce: a random text, which is different if the same number is saved again, as after a return to a checkpoint.
    """

    version: int
    nonce: str


@dataclass(frozen=True, slots=True)
class WeightsDirectory:
    """Holds one version at a time.

    Attributes:
        path: the directory.
        reference: a checkpoint with the tensors that the first version must have; None: the first version may be any.
    """

    path: Path
    reference: Path | None = None

    @property
    def saved_version(self) -> SavedVersion | None:
        """The version in the directory; None if there is none, or if moving it in was not completed."""
        try:
            content = orjson.loads((self.path / _VERSION_FILE).read_bytes())
            return SavedVersion(int(content["version"]), str(content["nonce"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{self.path / _VERSION_FILE} does not tell a version ({error!r}); publish one again."
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that publishes from here. Raises WeightsHeld if another one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WeightsHeld(
                    f"{self.path}: another process publishes from here, and sees to engines that are behind by itself."
                ) from None
            yield

    def replace(self, version: int, save: Saver) -> None:
        """Save a version and replace the previous one.

        Raises:
            WeightsError: what was saved cannot be loaded, or has other tensors than this model. The old version stays.
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
                old.unlink(missing_ok=True)  # another number of shards; an engine would load both
        for name in sorted(incoming_names):
            os.replace(incoming / name, self.path / name)


def read_shapes(directory: Path) -> Shapes:
    """Every tensor of a checkpoint, by name, from the files' headers alone.

    Raises:
        WeightsError: a file is missing, cut short, or not of the format.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} holds no *.safetensors; the saver must write its weights there.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _header_shapes(file).items():
            if name in shapes:
                raise WeightsError(f"{file} holds {name}, and so does another file beside it.")
            shapes[name] = shape
    index = directory / _INDEX_FILE
    if index.exists():
        _require_matching_index(index, shapes)
    return shapes


def _header_shapes(file: Path) -> Shapes:
    try:
        # Opened here too, because safe_open says of every file that it cannot open that it does not exist.
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
        raise WeightsError(f"{index} and the files beside it differ in {_shortened_list(indexed_names ^ set(shapes))}.")


def _require_same_shapes(shapes: Shapes, expected: Shapes, saved_directory: Path, reference_directory: Path) -> None:
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    reshaped = {name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]}
    for problem, names in (("lack", missing), ("have besides", extra), ("have in other shapes", reshaped)):
        if names:
            raise WeightsError(
                f"the weights that were saved in {saved_directory} {problem} {_shortened_list(names)}, compared with "
                f"{reference_directory}. Does the trainer save the whole model, under the names of the checkpoint that "
                "the engines serve?"
            )


def _shortened_list(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown} and {len(names) - _MAX_NAMES_SHOWN} more"
