"""The directory that engines load a policy's weights from: checked before anything replaces what lies there.

    weights = WeightsDirectory(Path("/runs/one/policy"))
    weights.replace(7, model.save_pretrained)

A new version is written beside the old one, read as an engine would, and then moved over it file by file. A process
that has the old files open keeps them; a version number lies beside them only while they are whole. An engine that is
given a file it cannot load answers 500 and dies at its next request, so none is offered what was not read here.
"""

import fcntl
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from rollout.errors import RolloutError

Saver = Callable[[Path], object]
"""Writes all weights into a directory, as safetensors; `model.save_pretrained` is one."""
Shapes = Mapping[str, tuple[int, ...]]

_MARK = "policy_version.json"
_INCOMING = ".incoming"
_LOCK = ".publisher.lock"
_INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
_TOLD = 3


class WeightsError(RolloutError):
    """Weights that an engine could not load, or that are not this model's; no engine was told of them."""


class WeightsHeld(RolloutError):
    """Another process publishes from this directory: two would give one version's name to another one's weights."""


@dataclass(frozen=True, slots=True)
class Edition:
    """A version as it was once saved. A trainer that goes back to a checkpoint saves the same number again."""

    version: int
    nonce: str


@dataclass(frozen=True, slots=True)
class WeightsDirectory:
    """Holds one version at a time. `reference` is a checkpoint whose tensors every version must have."""

    path: Path
    reference: Path | None = None

    @property
    def edition(self) -> Edition | None:
        """What lies there; None where there is nothing, or where it was not moved there to the end."""
        try:
            told = orjson.loads((self.path / _MARK).read_bytes())
            return Edition(int(told["version"]), str(told["nonce"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{self.path / _MARK} does not tell a version ({error!r}); publish one again.") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who publishes from here. Raises WeightsHeld."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WeightsHeld(
                    f"{self.path}: another process publishes from here, and sees to engines that are behind by itself."
                ) from None
            yield

    def replace(self, version: int, save: Saver) -> None:
        """Save a version and put it in the place of the one before.

        Raises:
            WeightsError: what was saved cannot be loaded, or has other tensors than this model. The old version stays.
        """
        incoming = self.path / _INCOMING
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        try:
            save(incoming)
        except OSError as error:
            raise WeightsError(f"the weights of version {version} cannot be written to {incoming}: {error}.") from error
        found = read_shapes(incoming)
        before = self.path if self.edition is not None else self.reference
        if before is not None:
            _require_same(found, read_shapes(before), incoming, before)
        self._move_in(incoming)
        mark = incoming / _MARK
        mark.write_bytes(orjson.dumps(asdict(Edition(version, secrets.token_hex(8)))))
        os.replace(mark, self.path / _MARK)
        shutil.rmtree(incoming)

    def _move_in(self, incoming: Path) -> None:
        (self.path / _MARK).unlink(missing_ok=True)
        arriving = {file.name for file in incoming.iterdir() if file.is_file()}
        for old in (*self.path.glob("*.safetensors"), self.path / _INDEX):
            if old.name not in arriving:
                old.unlink(missing_ok=True)  # another number of shards; an engine would load both
        for name in sorted(arriving):
            os.replace(incoming / name, self.path / name)


def read_shapes(directory: Path) -> Shapes:
    """Every tensor of a checkpoint, by name, from the files' headers alone.

    Raises:
        WeightsError: a file is missing, cut short, or not of the format.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} holds no *.safetensors; the saver must write its weights there.")
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _header(file).items():
            if name in found:
                raise WeightsError(f"{file} holds {name}, and so does another file beside it.")
            found[name] = shape
    index = directory / _INDEX
    if index.exists():
        _require_indexed(index, found)
    return found


def _header(file: Path) -> Shapes:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            told: dict[str, Any] = orjson.loads(opened.read(length))
        told.pop("__metadata__", None)
        shapes = {name: tuple(int(side) for side in tensor["shape"]) for name, tensor in told.items()}
        end = max((int(tensor["data_offsets"][1]) for tensor in told.values()), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}.") from None
    size = file.stat().st_size
    if size != 8 + length + end:
        raise WeightsError(
            f"{file} has {size:,} bytes, and its header speaks of {8 + length + end:,}: was it cut short?"
        )
    return shapes


def _require_indexed(index: Path, found: Shapes) -> None:
    try:
        named = set(orjson.loads(index.read_bytes())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}.") from None
    if named != set(found):
        raise WeightsError(f"{index} and the files beside it differ in {_some(named ^ set(found))}.")


def _require_same(found: Shapes, expected: Shapes, where: Path, before: Path) -> None:
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    reshaped = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    for what, names in (("lack", missing), ("have besides", surplus), ("have in other shapes", reshaped)):
        if names:
            raise WeightsError(
                f"the weights that were saved in {where} {what} {_some(names)}, compared with {before}. "
                "Does the trainer save the whole model, under the names of the checkpoint that the engines serve?"
            )


def _some(names: set[str]) -> str:
    told = ", ".join(sorted(names)[:_TOLD])
    return told if len(names) <= _TOLD else f"{told} and {len(names) - _TOLD} more"
