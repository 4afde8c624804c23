"""Deliveries on their way from arrival to ack: unacked, settled, contained in a saved state, acked."""

from collections import deque

from rollout.trainer.errors import LeaseLost
from rollout.trainer.reading.pending import RecordKey
from transports import Delivery, Queue, StaleLease


def lane_position(delivery: Delivery) -> RecordKey:
    return delivery.lane, delivery.position


class PendingAcks:
    """Acks a record only after it is settled, then contained in a state, and that state is committed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._unacked_deliveries: dict[RecordKey, Delivery] = {}
        self._rejection_reasons: dict[RecordKey, str] = {}
        self._settled_keys: list[RecordKey] = []
        self._keys_by_state: deque[tuple[int, list[RecordKey]]] = deque()
        self._last_state_number = 0

    @property
    def unacked(self) -> int:
        return len(self._unacked_deliveries)

    def add_delivery(self, delivery: Delivery) -> bool:
        """Take note of a delivery; False if its record is here already, and was delivered again under another lease.

        Pending rollouts keep the content of the record. Here only what an ack needs is kept.
        """
        key = lane_position(delivery)
        is_new = key not in self._unacked_deliveries
        # A rejected record keeps its frames, because it goes to the dead letters unchanged.
        self._unacked_deliveries[key] = delivery if key in self._rejection_reasons else _without_frames(delivery)
        return is_new

    def mark_settled(self, key: RecordKey) -> None:
        self._settled_keys.append(key)

    def mark_rejected(self, delivery: Delivery, reason: str) -> None:
        """Put the record among the dead letters when the outcome of its rollout is committed."""
        key = lane_position(delivery)
        self._unacked_deliveries[key], self._rejection_reasons[key] = delivery, reason

    def assign_state_number(self) -> int:
        """Number a new state, which contains everything settled so far."""
        self._last_state_number += 1
        self._keys_by_state.append((self._last_state_number, self._settled_keys))
        self._settled_keys = []
        return self._last_state_number

    async def commit(self, state_number: int | None) -> None:
        """Ack what a state contains: the state of this number, or the last one. May be cancelled, and called again.

        Raises:
            LeaseLost: the lease of some records has ended; the other records were acked.
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
            # If the lease comes back, and with it these records, the next commit acks them.
            self._keys_by_state.appendleft((last_number, list(lost_keys)))
            raise LeaseLost(
                f"{self._queue.url}: {len(lost_keys)} of {len(keys)} records that this trainer consumed are no longer "
                "lent to it. If another process was started in its place, stop this one, and save nothing more; if "
                "none was, go on: the saved state contains these records, and they are dropped when they come again."
            )

    async def _ack(self, deliveries: list[Delivery]) -> list[RecordKey]:
        """Ack deliveries; returns the keys of those that were refused."""
        if not deliveries:
            return []
        try:
            await self._queue.ack(deliveries)
        except StaleLease as error:
            return [lane_position(delivery) for delivery in error.deliveries]
        return []

    async def _reject(self, delivery: Delivery, reason: str) -> bool:
        try:
            await self._queue.reject(delivery, reason)
        except StaleLease:
            return False
        return True


def _without_frames(delivery: Delivery) -> Delivery:
    """The delivery without its frames. It does not use `replace`, which takes as long as decoding a small record."""
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
