"""Stores the steps of pending rollouts. Above a memory limit, it spills the oldest steps to files.

The files have no name, so the system deletes them when the process dies. A file is closed when none of its steps is
needed any more; this frees its space.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rollout.records.kinds import Step
from rollout.records.wire import decode_record
from rollout.trainer.errors import SpillError
from transports import Frames

_MAX_FILE_BYTES = 64 << 20
_DECODED_OVERHEAD_BYTES = 5 << 10
"""Bytes that a decoded step takes in addition to its arrays. The arrays take as many bytes as the frames."""


@dataclass(slots=True, eq=False)
class StoredStep:
    """One step in a `StepStore`.

    Attributes:
        nbytes: the size of its frames in bytes.
        frames_and_step: its frames and the decoded step; None if the step is on disk.
        location: where its frames are on disk; None if the step is in memory.
    """

    nbytes: int
    frames_and_step: tuple[Frames, Step] | None
    location: "_SpillLocation | None" = None

    @property
    def bytes_in_memory(self) -> int:
        """The bytes that this step takes in memory: its frames and the decoded step."""
        return 2 * self.nbytes + _DECODED_OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class _SpillFile:
    handle: IO[bytes]
    size: int = 0
    live_steps: int = 0


@dataclass(frozen=True, slots=True)
class _SpillLocation:
    spill_file: _SpillFile
    offset: int
    lengths: tuple[int, ...]


@dataclass(slots=True)
class StepStore:
    """Stores steps in memory and, above a limit, on disk."""

    memory_limit: int
    """The maximum bytes of steps in memory, as frames and decoded."""
    directory: Path | str | None = None
    """The directory of the spill files; None: the system's directory for temporary files."""
    in_memory: int = 0
    """The bytes that steps take in memory now."""
    on_disk: int = 0
    """The bytes that steps take on disk now."""
    _steps_in_memory: dict[StoredStep, None] = field(default_factory=dict)
    _spill_files: list[_SpillFile] = field(default_factory=list)
    """Steps are written to the last file. Every other file stays open while one of its steps is needed."""

    def add(self, frames: Frames, step: Step) -> StoredStep:
        """Store a step and return its entry. The oldest steps are spilled until memory is within the limit.

        Raises:
            SpillError: a step cannot be written, for example because the directory is full or does not exist.
        """
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        stored = StoredStep(nbytes, (frames, step))
        self._steps_in_memory[stored] = None
        self.in_memory += stored.bytes_in_memory
        while self.in_memory > self.memory_limit:
            self._spill(next(iter(self._steps_in_memory)))
        return stored

    def read(self, stored: StoredStep) -> tuple[Frames, Step]:
        """Return the frames and the decoded step. The step stays in the store."""
        if stored.frames_and_step is not None:
            return stored.frames_and_step
        frames = tuple(self._read_frames(stored))
        step = decode_record(frames)
        assert isinstance(step, Step)
        return frames, step

    def drop(self, stored: StoredStep) -> None:
        """Remove a step from the store."""
        if stored.location is None:
            del self._steps_in_memory[stored]
            self.in_memory -= stored.bytes_in_memory
            return
        self.on_disk -= stored.nbytes
        stored.location.spill_file.live_steps -= 1
        self._close_unused_files()

    def close(self) -> None:
        """Close all files; this deletes them."""
        while self._spill_files:
            self._spill_files.pop().handle.close()

    def _spill(self, stored: StoredStep) -> None:
        """Move a step from memory to disk."""
        assert stored.frames_and_step is not None
        frames = stored.frames_and_step[0]
        try:
            spill_file = self._writable_file()
            spill_file.handle.seek(spill_file.size)
            for frame in frames:
                _write_all(spill_file.handle, frame)
        except OSError as error:
            raise SpillError(
                f"{self.directory or tempfile.gettempdir()}: the reader cannot spill steps to this directory: "
                f"{error.strerror}. Free some space, set another spill_directory, or raise the memory_limit, which is "
                f"{self.memory_limit} bytes."
            ) from error
        stored.location = _SpillLocation(
            spill_file, spill_file.size, tuple(memoryview(frame).nbytes for frame in frames)
        )
        stored.frames_and_step = None
        spill_file.size += stored.nbytes
        spill_file.live_steps += 1
        del self._steps_in_memory[stored]
        self.in_memory -= stored.bytes_in_memory
        self.on_disk += stored.nbytes

    def _writable_file(self) -> _SpillFile:
        """Return the last file, or a new file if the last one is full."""
        if not self._spill_files or self._spill_files[-1].size >= _MAX_FILE_BYTES:
            self._spill_files.append(_SpillFile(tempfile.TemporaryFile(dir=self.directory, buffering=0)))  # noqa: SIM115
            self._close_unused_files()
        return self._spill_files[-1]

    def _read_frames(self, stored: StoredStep) -> Iterator[bytes]:
        assert stored.location is not None
        handle = stored.location.spill_file.handle
        handle.seek(stored.location.offset)
        for length in stored.location.lengths:
            yield handle.read(length)

    def _close_unused_files(self) -> None:
        for spill_file in [file for file in self._spill_files[:-1] if not file.live_steps]:
            spill_file.handle.close()
            self._spill_files.remove(spill_file)


def _write_all(file: IO[bytes], frame: bytes | memoryview) -> None:
    remaining = memoryview(frame)
    while remaining:
        remaining = remaining[file.write(remaining) :]
