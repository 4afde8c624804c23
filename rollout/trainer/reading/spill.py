"""Steps that wait for the rest of their rollout: in memory up to a limit, beyond it on the disk, oldest first.

The disk's part lies in files without a name, so that nothing stays behind whatever becomes of the process. A file is
given back to the system once nothing in it is wanted any more.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rollout.records.wire import Step, decode_record
from rollout.trainer.errors import SpillError
from transports import Frames

_FILE_BYTES = 64 << 20
_DECODED_BYTES = 5 << 10
"""What a decoded step takes besides its arrays, which take what its frames do."""


@dataclass(slots=True, eq=False)
class HeldStep:
    """One step of so many bytes on the wire: its frames and what they say, or where its frames lie."""

    nbytes: int
    content: tuple[Frames, Step] | None
    place: "_Place | None" = None

    @property
    def bytes_in_memory(self) -> int:
        return 2 * self.nbytes + _DECODED_BYTES


@dataclass(slots=True, eq=False)
class _File:
    file: IO[bytes]
    size: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    file: _File
    offset: int
    lengths: tuple[int, ...]


@dataclass(slots=True)
class StepStore:
    """Holds steps."""

    memory_limit: int
    """Bytes that steps may take here, their frames and what these were decoded to."""
    directory: Path | None = None
    """Where the files are made; None: the system's place for temporary files."""
    in_memory: int = 0
    on_disk: int = 0
    _held: dict[HeldStep, None] = field(default_factory=dict)
    _files: list[_File] = field(default_factory=list)
    """The last one is written to; the others are there for as long as something in them is wanted."""

    def hold(self, frames: Frames, step: Step) -> HeldStep:
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        held = HeldStep(nbytes, (frames, step))
        self._held[held] = None
        self.in_memory += held.bytes_in_memory
        while self.in_memory > self.memory_limit:
            self._spill(next(iter(self._held)))
        return held

    def read(self, held: HeldStep) -> tuple[Frames, Step]:
        """The step as it came. It stays held."""
        if held.content is not None:
            return held.content
        frames = tuple(self._read(held))
        step = decode_record(frames)
        assert isinstance(step, Step)
        return frames, step

    def drop(self, held: HeldStep) -> None:
        """Nobody needs it any more."""
        if held.place is None:
            del self._held[held]
            self.in_memory -= held.bytes_in_memory
            return
        self.on_disk -= held.nbytes
        held.place.file.wanted -= 1
        self._close_unwanted()

    def close(self) -> None:
        while self._files:
            self._files.pop().file.close()

    def _spill(self, held: HeldStep) -> None:
        assert held.content is not None
        frames = held.content[0]
        try:
            into = self._file()
            into.file.seek(into.size)
            for frame in frames:
                _write(into.file, frame)
        except OSError as error:
            raise SpillError(
                f"{self.directory or tempfile.gettempdir()}: the steps of unfinished rollouts are over the reader's "
                f"memory_limit of {self.memory_limit} bytes and cannot be put there: {error.strerror}. "
                "Free space, name another spill_directory, or raise memory_limit."
            ) from error
        held.place = _Place(into, into.size, tuple(memoryview(frame).nbytes for frame in frames))
        held.content = None
        into.size += held.nbytes
        into.wanted += 1
        del self._held[held]
        self.in_memory -= held.bytes_in_memory
        self.on_disk += held.nbytes

    def _file(self) -> _File:
        if not self._files or self._files[-1].size >= _FILE_BYTES:
            self._files.append(_File(tempfile.TemporaryFile(dir=self.directory, buffering=0)))  # noqa: SIM115
            self._close_unwanted()
        return self._files[-1]

    def _read(self, held: HeldStep) -> Iterator[bytes]:
        assert held.place is not None
        file = held.place.file.file
        file.seek(held.place.offset)
        for length in held.place.lengths:
            yield file.read(length)

    def _close_unwanted(self) -> None:
        for file in [file for file in self._files[:-1] if not file.wanted]:
            file.file.close()
            self._files.remove(file)


def _write(file: IO[bytes], frame: bytes | memoryview) -> None:
    rest = memoryview(frame)
    while rest:
        rest = rest[file.write(rest) :]
