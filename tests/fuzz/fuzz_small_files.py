"""Reads damaged files of a run: queue.json, holders and leases, logs of acks, segments, outcomes, manifests.

A file that our code wrote is cut or changed, and read again. Our code raises a named error, or reads what is safe.
"""

import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import structlog

from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.manifest import CannotResume, resume_run
from tests.fuzz.fuzzing import fuzz
from transports import QueueError
from transports.files.acks import AckLedger, AckLog, EntryKind, LedgerEntry
from transports.files.backlog import BacklogCounter
from transports.files.directory import QueueDirectory, list_segments_by_writer, open_queue_directory
from transports.files.lanes import read_lane
from transports.files.leases import HeartbeatWatcher, LeaseHolder, expire_holder_leases
from transports.files.segments import SegmentWriter

Case = tuple[str, bytes]
HOLDER = "0123456789abcdef"
WRITER = "fedcba9876543210"
_SPECIAL = (b"\0" * 8, b"\xff" * 8, b"Infinity", b"-1", b"1e400", b"[" * 50, b"null", b'"', b"\n")

work = Path(tempfile.gettempdir())
originals: dict[str, bytes] = {}


@contextmanager
def files_of_a_run() -> Iterator[None]:
    """Write one valid file of each kind, and read them into `originals`."""
    global work
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        queue_dir = open_queue_directory("file://", work / "queue", 2)
        writer = SegmentWriter(queue_dir.partition_dir(0), 1 << 20)
        for frames in ((b"a", b"bc"), (b"",), (b"d" * 100,)):
            writer.append(frames, "key", "tag")
        log = AckLog(queue_dir.partition_dir(0), epoch=0, holder=HOLDER, initial_entries=[])
        log.append([LedgerEntry(kind, WRITER, number) for number, kind in enumerate(EntryKind)])
        holder = LeaseHolder(queue_dir.holders_dir, 600.0)
        holder.create_lease(queue_dir.partition_dir(0) / "lease.0")
        claims = Claims(work / "claims")
        claims.claim_next_attempt("r")
        claims.record_outcome(Outcome("r", "g", 1, "ok", reward=1.0, metrics={"m": 0.5}))
        (segment,) = (queue_dir.partition_dir(0)).glob("*.seg")
        originals.update(
            {
                "queue.json": (queue_dir.root / "queue.json").read_bytes(),
                "segment": segment.read_bytes(),
                "acks": (queue_dir.partition_dir(0) / log.name).read_bytes(),
                "holder": (queue_dir.holders_dir / holder.name).read_bytes(),
                "lease": (queue_dir.holders_dir / holder.name).read_bytes(),
                "outcome": next((work / "claims").glob("*.done")).read_bytes(),
                "launch.json": orjson.dumps([{"file": "/none.yaml", "overrides": ["a=1"], "environment": "e"}]),
            }
        )
        holder.close()
        log.close()
        writer.close()
        yield


def make(rng: random.Random) -> Case:
    kind = rng.choice(list(KINDS))
    data = bytearray(originals[kind])
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = rng.choice(_SPECIAL)
            case 2:
                data[at : at + 8] = rng.choice(_SPECIAL)
            case 3 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
    return kind, bytes(data)


def read_queue_json(data: bytes) -> str:
    (work / "queue" / "queue.json").write_bytes(data)
    return f"{open_queue_directory('file://', work / 'queue', None).partitions} partitions"


def read_segment(data: bytes) -> str:
    queue_dir = QueueDirectory(work / "segments", partitions=1, retain=False)
    directory = queue_dir.partition_dir(0)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{WRITER}.{0:016x}.seg").write_bytes(data)
    (segments,) = list_segments_by_writer(directory)
    BacklogCounter(queue_dir, retains=False).measure()
    return f"{len(list(read_lane(directory, segments)))} records"


def read_acks(data: bytes) -> str:
    directory = work / "acks"
    directory.mkdir(exist_ok=True)
    (directory / f"acks.{0:016x}.{HOLDER}.{0:08x}").write_bytes(data)
    ledger = AckLedger(directory)
    ledger.refresh()
    return f"{len(ledger.lanes)} lanes"


def read_holder(data: bytes) -> str:
    directory = work / "holders"
    directory.mkdir(exist_ok=True)
    (directory / HOLDER).write_bytes(data)
    expire_holder_leases(directory, HOLDER)
    return "expired" if HeartbeatWatcher(directory, 600.0).has_expired(directory / HOLDER) else "not expired"


def read_lease(data: bytes) -> str:
    directory = work / "leases"
    directory.mkdir(exist_ok=True)
    (directory / "lease.0").write_bytes(data)
    watcher = HeartbeatWatcher(directory, 0.0)
    return "expired" if watcher.has_expired(directory / "lease.0") else "not expired"


def read_outcome(data: bytes) -> str:
    claims = Claims(work / "claims")
    next((work / "claims").glob("*.done")).write_bytes(data)
    assert claims.is_done("r")
    return "read" if claims.outcome("r") is not None else "damaged"


def read_manifest(data: bytes) -> str:
    (work / "launch.json").write_bytes(data)
    try:
        resume_run(work, [], [Path("/other.yaml")])
    except CannotResume as refused:
        if "this run was started with" in str(refused):
            return "understood"
        raise
    raise AssertionError("a run with other files was resumed")


KINDS: dict[str, Callable[[bytes], str]] = {
    "queue.json": read_queue_json,
    "segment": read_segment,
    "acks": read_acks,
    "holder": read_holder,
    "lease": read_lease,
    "outcome": read_outcome,
    "launch.json": read_manifest,
}


def attempt(case: Case) -> str:
    kind, data = case
    return f"{kind}: {KINDS[kind](data)}"


if __name__ == "__main__":
    sys.exit(fuzz(str(__doc__), make, attempt, named_errors=(QueueError, CannotResume), around=files_of_a_run))
