"""Keeps each delivery until it is acked: the reader settles its record, a state contains it, and a commit acks it."""

from collections import deque

from rollout.trainer.errors import LeaseLost
from rollout.trainer.reading.pending import RecordKey
from transports import Delivery, Queue, StaleLease


def lane_position(delivery: Delivery) -> RecordKey:
    """Return the lane and the position of a delivery; together they identify the record."""
    return delivery.lane, delivery.position


class PendingAcks:
    """Acks a record when it is settled, a saved state contains it, and that state is committed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._unacked_deliveries: dict[RecordKey, Delivery] = {}
        self._rejection_reasons: dict[RecordKey, str] = {}
        self._settled_keys: list[RecordKey] = []
        self._keys_by_state: deque[tuple[int, list[RecordKey]]] = deque()
        self._last_state_number = 0

    @property
    def unacked(self) -> int:
        """The number of records that were delivered and are not acked."""
        return len(self._unacked_deliveries)

    def add_delivery(self, delivery: Delivery) -> bool:
        """Keep a delivery until its ack; return False if an earlier delivery of the same record is already here."""
        key = lane_position(delivery)
        is_new = key not in self._unacked_deliveries
        # A rejected record needs its frames, because its dead letter contains them unchanged.
        self._unacked_deliveries[key] = delivery if key in self._rejection_reasons else _without_frames(delivery)
        return is_new

    def mark_settled(self, key: RecordKey) -> None:
        """Add this record to the next state."""
        self._settled_keys.append(key)

    def mark_rejected(self, delivery: Delivery, reason: str) -> None:
        """Mark this record, so that `commit` moves it to the dead letters instead of acking it."""
        key = lane_position(delivery)
        self._unacked_deliveries[key], self._rejection_reasons[key] = delivery, reason

    def assign_state_number(self) -> int:
        """Return the number of a new state; the state contains all records that are settled now."""
        self._last_state_number += 1
        self._keys_by_state.append((self._last_state_number, self._settled_keys))
        self._settled_keys = []
        return self._last_state_number

    async def commit(self, state_number: int | None) -> None:
        """Ack the records of all states up to this number, or of all states if it is None.

        If this call is cancelled, another call acks the rest.

        Raises:
            LeaseLost: the lease of some records has ended; the other records are acked.
        """
        last_number = self._last_state_number if state_number is None else state_number
        keys = [key for number, state_keys in self._keys_by_state if number <= last_number for key in state_keys]
        lost_keys = set(
            await self._ack([self._unacked_deliveries[key] for key in keys if key not in self._rejection_reasons])
        )
        for key in keys:
            if key in self._rejection_reasons and not await self._reject(
                self._unacked_deliveries[key], self._rejection_reasons[key]
            ):
                lost_keys.add(key)
        while self._keys_by_state and self._keys_by_state[0][0] <= last_number:
            self._keys_by_state.popleft()
        for key in keys:
            if key not in lost_keys:
                del self._unacked_deliveries[key]
                self._rejection_reasons.pop(key, None)
        if lost_keys:
            # The queue may deliver these records again under a new lease. Then the next commit acks them.
            self._keys_by_state.appendleft((last_number, list(lost_keys)))
            raise LeaseLost(
                f"{self._queue.url}: this trainer has lost the lease of {len(lost_keys)} of the {len(keys)} records "
                "that it must ack. If another process has replaced it, stop this one and do not save again. If not, "
                "continue: the saved state contains these records, and the reader drops them if they arrive again."
            )

    async def _ack(self, deliveries: list[Delivery]) -> list[RecordKey]:
        """Ack deliveries; return the keys of the deliveries that were not acked because their lease has ended."""
        if not deliveries:
            return []
        try:
            await self._queue.ack(deliveries)
        except StaleLease as error:
            return [lane_position(delivery) for delivery in error.deliveries]
        return []

    async def _reject(self, delivery: Delivery, reason: str) -> bool:
        """Move a record to the dead letters; return False if its lease has ended."""
        try:
            await self._queue.reject(delivery, reason)
        except StaleLease:
            return False
        return True


def _without_frames(delivery: Delivery) -> Delivery:
    """Return the delivery without its frames."""
    # `dataclasses.replace` would take as long as decoding a small record.
    return Delivery(
        frames=(),
        key=delivery.key,
        tag=delivery.tag,
        partition=delivery.partition,
        lane=delivery.lane,
        position=delivery.position,
        redelivered=delivery.redelivered,
        epoch=delivery.epoch,
        queue=delivery.queue,
    )
