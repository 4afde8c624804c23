"""Defines what the ranks say to each other: they agree on each step, and every rank learns the error of every other.

The reading rank has the number 0. It sends to every other rank, and every other rank sends only to it. So it learns
which rank has failed, and tells the others.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rollout.errors import error_text
from rollout.trainer.errors import RankError, RankFailed
from rollout.trainer.ranks.connections import READING_RANK, Connections
from rollout.trainer.ranks.messages import Kind, Message

_GRACE_SECONDS = 10.0
"""How much longer than the reading rank the others wait, so that its error comes first and names the right rank."""
_FAREWELL_SECONDS = 5.0
"""The time to tell other ranks about an error. A rank that is training learns it when it asks for the next step."""


class RankExchange:
    """The side of one rank. A method that fails raises RankFailed with the number of the rank that has failed.

    Args:
        process_group: the training ranks; None: the default group.
        rank_timeout: the maximum seconds that one rank may keep the others waiting.

    Attributes:
        rank: the rank of this process in the group.
        size: the number of ranks.
    """

    def __init__(self, process_group: Any, rank_timeout: float) -> None:
        self._timeout = rank_timeout
        self._connections = Connections(process_group, rank_timeout + _GRACE_SECONDS)
        self.rank, self.size = self._connections.rank, self._connections.size

    @property
    def is_reading_rank(self) -> bool:
        """Whether this rank reads the queues."""
        return self.rank == READING_RANK

    def gather(self) -> dict[int, Message]:
        """Return the next message of each other rank. Only the reading rank calls this."""
        messages = self._connections.receive(self._timeout, heartbeat=Message(Kind.WAITING))
        for rank, message in messages.items():
            if message.kind is Kind.FAILED:
                raise RankFailed(message.text, rank=rank)
        return messages

    def tell(self, message: Message) -> None:
        """Send a message to all peers: the reading rank to all others, and each of these to the reading rank."""
        self._connections.send(dict.fromkeys(self._connections.peers, message), self._timeout)

    def hand_out(self, parts: Mapping[int, memoryview]) -> None:
        """Send each other rank its part of a step. Only the reading rank calls this."""
        try:
            self._connections.send({rank: Message(Kind.STEP, len(part)) for rank, part in parts.items()}, self._timeout)
        except RankFailed as error:
            # The others wait for their parts now. With them, they learn from the next message which rank has failed.
            others = {rank: part for rank, part in parts.items() if rank != error.rank}
            with suppress(RankFailed):
                self._connections.send_payloads(others, _FAREWELL_SECONDS)
            raise
        self._connections.send_payloads(parts, self._timeout)

    def listen(self) -> Message:
        """Return the next message of the reading rank that is not `Kind.WAITING`.

        Raises:
            RankError: the settings of the ranks do not fit together.
        """
        while True:
            message = self._connections.receive(self._timeout + _GRACE_SECONDS)[READING_RANK]
            if message.kind is Kind.FAILED:
                raise RankFailed(message.text, rank=message.number)
            if message.kind is Kind.REFUSED:
                raise RankError(message.text)
            if message.kind is not Kind.WAITING:
                return message

    def receive_part(self, message: Message) -> memoryview:
        """Return the part of a step that follows this message."""
        return self._connections.receive_payload(message.number, self._timeout + _GRACE_SECONDS)

    def fail(self, error: BaseException) -> None:
        """Tell the peers that this rank stops because of an error, and close all connections."""
        if not isinstance(error, RankFailed):
            self._stop(self.rank, f"it has failed with {type(error).__name__}: {error_text(error)}")
        elif self.is_reading_rank and error.rank is not None:
            self._stop(error.rank, error.reason)
        else:
            self.close()  # the reading rank has failed, or has told this rank

    def leave(self) -> None:
        """Tell the peers that this rank stops before the end, and close all connections."""
        self._stop(self.rank, "it has left its loop before the end. Leave the loop after the same step on every rank.")

    def close(self) -> None:
        """Close all connections, so that a rank that waits for this one fails at once."""
        self._connections.close()

    def _stop(self, stopped_rank: int, reason: str) -> None:
        told = [rank for rank in self._connections.peers if rank != stopped_rank]
        message = Message(Kind.FAILED, stopped_rank, reason)
        with suppress(RankFailed):
            self._connections.send(dict.fromkeys(told, message), _FAREWELL_SECONDS)
        # A message may be lost if its sender closes the connection at once.
        self._connections.wait_for_answers(told, _FAREWELL_SECONDS)
        self.close()
