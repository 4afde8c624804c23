"""Sends bytes between ranks over a gloo group of torch.distributed, with deadlines that can name the rank at fault.

Each rank always has a receive posted for each rank that it talks to. So a message arrives even while its receiver
trains, and the message can be read after the sender has ended.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from rollout.trainer.errors import RankFailed
from rollout.trainer.ranks.messages import MESSAGE_BYTES, Message

READING_RANK = 0

_HEARTBEAT_SECONDS = 2.0
_GLOO_GRACE_SECONDS = 60.0
"""How much later than our own deadline that of gloo is. After its deadline, gloo closes all connections."""
_MESSAGE_TAG, _PAYLOAD_TAG, _UNUSED_TAG = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A send or a receive that may not be complete. The buffer must live as long as the work."""

    rank: int
    buffer: torch.Tensor
    work: Any


class Connections:
    """The connections between the reading rank and each other rank. After an error, they can only be closed.

    Args:
        process_group: the training ranks; None: the default group. The connections are in a group of their own, because
            a group for GPUs cannot send from the CPU. If torch.distributed is not initialised, there is one rank.
        timeout: the maximum seconds of a wait.

    Attributes:
        rank: the rank of this process in the group.
        size: the number of ranks.

    Raises:
        RankFailed: not all ranks connected in time.
    """

    def __init__(self, process_group: Any, timeout: float) -> None:
        self.rank, self.size = READING_RANK, 1
        self._group: Any = None
        self._posted: dict[int, _Transfer] = {}
        self._heartbeats: list[_Transfer] = []
        if not dist.is_available() or not dist.is_initialized():
            return
        ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
        rank, gloo_timeout = dist.get_rank(), timedelta(seconds=timeout + _GLOO_GRACE_SECONDS)
        try:
            store = _new_store(ranks, rank)
            self._group = dist.ProcessGroupGloo(store, ranks.index(rank), len(ranks), gloo_timeout)
        except RuntimeError as error:
            raise RankFailed(
                f"the {len(ranks)} ranks did not connect ({error}). Call open_batches() on every rank of the process "
                "group, and check that the ranks can reach each other.",
                rank=None,
            ) from error
        self.rank, self.size = ranks.index(rank), len(ranks)
        for peer in self.peers:
            self._post_receive(peer)

    @property
    def peers(self) -> Sequence[int]:
        """The ranks that this rank talks to; none after the close."""
        if self._group is None:
            return []
        return range(READING_RANK + 1, self.size) if self.rank == READING_RANK else [READING_RANK]

    def send(self, messages: Mapping[int, Message], timeout: float) -> None:
        """Send one message to each of these ranks, and wait for the delivery.

        Raises:
            RankFailed: a rank has ended, or it did not take the message in time. The other ranks get their messages.
        """
        self._send({rank: message.encode() for rank, message in messages.items()}, _MESSAGE_TAG, timeout)

    def send_payloads(self, payloads: Mapping[int, memoryview], timeout: float) -> None:
        """Send bytes to each of these ranks; the receiver must know how many. Raises the same error as `send`."""
        self._send(payloads, _PAYLOAD_TAG, timeout)

    def receive(self, timeout: float, heartbeat: Message | None = None) -> dict[int, Message]:
        """Return the next message of each peer.

        Args:
            timeout: the maximum seconds to wait.
            heartbeat: a message that is sent to all peers from time to time while a message is missing.

        Raises:
            RankFailed: a rank has ended, or it did not send a message in time.
        """

        def send_heartbeats() -> None:
            if heartbeat is not None:
                frame = heartbeat.encode()
                self._heartbeats += [self._start_send(rank, frame, _MESSAGE_TAG) for rank in self.peers]

        transfers = [self._next_receive(rank) for rank in self.peers]
        self._wait(transfers, timeout, send_heartbeats)
        for rank in self.peers:
            self._post_receive(rank)
        return {transfer.rank: Message.decode(bytes(transfer.buffer.numpy())) for transfer in transfers}

    def wait_for_answers(self, ranks: Sequence[int], timeout: float) -> None:
        """Wait until each of these ranks has sent a message or has closed its connection, or until the timeout."""
        deadline = time.monotonic() + timeout
        for rank in ranks:
            with suppress(RankFailed):
                self._wait([self._next_receive(rank)], deadline - time.monotonic())

    def receive_payload(self, size: int, timeout: float) -> memoryview:
        """Return bytes that the reading rank sends."""
        payload = self._start_receive(READING_RANK, size, _PAYLOAD_TAG)
        self._wait([payload], timeout)
        return memoryview(payload.buffer.numpy())

    def close(self) -> None:
        """Close all connections, so that a rank that waits for this one fails at once."""
        if self._group is None:
            return
        # A destroyed group keeps its connections while a thread waits in it. A wait that times out closes all of them.
        for rank in self.peers:
            with suppress(RuntimeError):
                work = self._group.recv([torch.empty(1)], rank, _UNUSED_TAG)
                work.wait(timedelta(milliseconds=1))
        self._posted.clear()
        self._group = None

    def _post_receive(self, rank: int) -> None:
        """Post the receive of the next message of a rank, unless the rank has ended."""
        with suppress(RankFailed):
            self._posted[rank] = self._start_receive(rank)

    def _next_receive(self, rank: int) -> _Transfer:
        """Return the posted receive. If it could not be posted, this raises RankFailed."""
        return self._posted.pop(rank) if rank in self._posted else self._start_receive(rank)

    def _start_receive(self, rank: int, size: int = MESSAGE_BYTES, tag: int = _MESSAGE_TAG) -> _Transfer:
        buffer = torch.empty(size, dtype=torch.uint8)
        try:
            return _Transfer(rank, buffer, self._group.recv([buffer], rank, tag))
        except RuntimeError as error:
            raise _closed_connection(rank) from error

    def _start_send(self, rank: int, frame: bytearray | memoryview, tag: int) -> _Transfer:
        buffer = torch.frombuffer(frame, dtype=torch.uint8)
        try:
            return _Transfer(rank, buffer, self._group.send([buffer], rank, tag))
        except RuntimeError as error:
            raise _closed_connection(rank) from error

    def _send(self, frames: Mapping[int, bytearray | memoryview], tag: int, timeout: float) -> None:
        # A message arrives after the heartbeats that were sent before it.
        transfers = [heartbeat for heartbeat in self._heartbeats if heartbeat.rank in frames]
        first_error: RankFailed | None = None
        for rank, frame in frames.items():
            try:
                transfers.append(self._start_send(rank, frame, tag))
            except RankFailed as error:
                first_error = first_error or error
        self._wait(transfers, timeout)
        self._heartbeats = [heartbeat for heartbeat in self._heartbeats if heartbeat.rank not in frames]
        if first_error is not None:
            raise first_error

    def _wait(self, transfers: Sequence[_Transfer], timeout: float, on_idle: Callable[[], None] | None = None) -> None:
        """Wait until all transfers are complete; call `on_idle` every two seconds meanwhile.

        Raises:
            RankFailed: a rank has ended, or its transfer is not complete in time.
        """
        if not transfers:
            return
        # A thread waits instead of this one, so that signals are handled, and so that gloo's own deadline never passes.
        results: SimpleQueue[RuntimeError | None] = SimpleQueue()
        threading.Thread(target=_wait_in_order, args=(transfers, results), name="rank-connections", daemon=True).start()
        deadline, done = time.monotonic() + timeout, 0
        while done < len(transfers):
            seconds_left = deadline - time.monotonic()
            try:
                error = results.get(timeout=max(0.0, min(seconds_left, _HEARTBEAT_SECONDS)))
            except Empty:
                if seconds_left <= 0:
                    raise _no_answer(transfers[done].rank, timeout) from None
                if on_idle is not None:
                    on_idle()
                continue
            if error is not None:
                raise _closed_connection(transfers[done].rank) from error
            done += 1


def _new_store(ranks: Sequence[int], rank: int) -> Any:
    """Return a part of the default store that no earlier connections of these ranks have used.

    torch.distributed.new_group would name the part by the number of groups in this process. That number may differ
    between ranks, and it repeats after a group is destroyed. Every rank opens connections equally often, so the store
    itself counts.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    name = f"rollout/{hashlib.sha256(repr(list(ranks)).encode()).hexdigest()}"
    default_store = _get_default_store()
    opened = default_store.add(f"{name}/opened_by/{rank}", 1)
    return dist.PrefixStore(f"{name}/{opened}", default_store)


def _wait_in_order(transfers: Sequence[_Transfer], results: "SimpleQueue[RuntimeError | None]") -> None:
    """Put the result of each transfer into the queue, in order."""
    for transfer in transfers:
        try:
            transfer.work.wait()
            results.put(None)
        except RuntimeError as error:
            results.put(error)


def _no_answer(rank: int, timeout: float) -> RankFailed:
    return RankFailed(
        f"it did not answer within {timeout:g} s. It hangs, or a training step or a checkpoint took longer. In that "
        "case, raise `rank_timeout` of open_batches().",
        rank=rank,
    )


def _closed_connection(rank: int) -> RankFailed:
    return RankFailed(
        "it has closed its connection. Its process has ended, or its loop was left. Look at its log for the reason.",
        rank=rank,
    )
