"""Deliveries on their way from arrival to ack: lent, settled, covered by a saved state, acked."""

from collections import deque

from rollout.trainer.errors import LeaseLost
from rollout.trainer.reading.pending import Key
from transports import Delivery, Queue, StaleLease


def key_of(delivery: Delivery) -> Key:
    return delivery.lane, delivery.position


class Settlement:
    """Nothing is acked before it is settled, covered by a state, and that state is committed, in this order."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lent: dict[Key, Delivery] = {}
        self._refused: dict[Key, str] = {}
        self._settled: list[Key] = []
        self._covered: deque[tuple[int, list[Key]]] = deque()
        self._states = 0

    @property
    def unacked(self) -> int:
        return len(self._lent)

    def arrive(self, delivery: Delivery) -> bool:
        """Take note of a delivery; False if its record is here already, and is now lent under another lease.

        What the record holds is the gathering's: only what it takes to ack it is kept.
        """
        key = key_of(delivery)
        new = key not in self._lent
        # A record that was refused goes to the dead letters as it came.
        self._lent[key] = delivery if key in self._refused else _receipt(delivery)
        return new

    def settle(self, key: Key) -> None:
        self._settled.append(key)

    def refuse(self, delivery: Delivery, reason: str) -> None:
        """The record goes to the dead letters once whatever became of its rollout is committed."""
        key = key_of(delivery)
        self._lent[key], self._refused[key] = delivery, reason

    def cover(self) -> int:
        """A state is made that contains everything settled so far; its number."""
        self._states += 1
        self._covered.append((self._states, self._settled))
        self._settled = []
        return self._states

    async def commit(self, state: int | None) -> None:
        """Ack what a state contains: the one of that number, or the last. May be cancelled, and called again.

        Raises:
            LeaseLost: for some of it another process holds the lease; the rest was acked.
        """
        last = self._states if state is None else state
        keys = [key for number, covered in self._covered if number <= last for key in covered]
        lost = set(await self._ack([self._lent[key] for key in keys if key not in self._refused]))
        for key in keys:
            if key in self._refused and not await self._reject(self._lent[key], self._refused[key]):
                lost.add(key)
        while self._covered and self._covered[0][0] <= last:
            self._covered.popleft()
        for key in keys:
            if key not in lost:
                del self._lent[key]
                self._refused.pop(key, None)
        if lost:
            # Should the lease come back, and with it these records, the next commit acks them.
            self._covered.appendleft((last, list(lost)))
            raise LeaseLost(
                f"{self._queue.url}: {len(lost)} of {len(keys)} records that this trainer consumed are no longer lent "
                "to it. If another process was started in its place, stop this one, and save nothing more; if none "
                "was, go on: the saved state contains these records, and they are dropped when they come again."
            )

    async def _ack(self, deliveries: list[Delivery]) -> list[Key]:
        """What was refused."""
        if not deliveries:
            return []
        try:
            await self._queue.ack(deliveries)
        except StaleLease as error:
            return [key_of(delivery) for delivery in error.deliveries]
        return []

    async def _reject(self, delivery: Delivery, reason: str) -> bool:
        try:
            await self._queue.reject(delivery, reason)
        except StaleLease:
            return False
        return True


def _receipt(delivery: Delivery) -> Delivery:
    """The delivery without its frames. Spelt out: `replace` takes as long as decoding a small record."""
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
