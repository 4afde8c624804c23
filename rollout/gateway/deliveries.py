"""Knows for each turn of an endpoint whether the program received the answer; only such turns train."""

from collections.abc import Iterable, Sequence


class Deliveries:
    """The deliveries of one endpoint.

    An answer was received if a later request repeats it, or if its last byte was sent and the connection was not reset.
    If the program asks the same again after it received an answer, the earlier answer counts only if it is repeated:
    either the program lost it, or it preferred another one.
    """

    def __init__(self) -> None:
        self._committed: dict[int, None] = {}
        self._echoed: set[int] = set()
        self._sent: set[int] = set()
        self._asked_again: set[int] = set()

    def add_turn(self, turn: int) -> None:
        """Add a turn, which the program has not received yet."""
        self._committed[turn] = None

    def mark_echoed(self, turns: Iterable[int]) -> None:
        """A request repeated the answers of these turns, so they were received."""
        self._echoed.update(turns)

    def mark_sent(self, turns: Iterable[int]) -> None:
        """The last byte of the answer with these turns was sent."""
        self._sent.update(turns)

    def mark_reset(self, turns: Iterable[int]) -> None:
        """The connection of an answer was reset after its last byte was sent, so the answer may be lost."""
        self._sent.difference_update(turns)

    def mark_asked_again(self, turns: Iterable[int]) -> None:
        """The program sent the same request again after it had received the answer."""
        self._asked_again.update(turns)

    def is_received(self, turn: int) -> bool:
        """Whether the program received the answer of a turn, and did not replace it by another one."""
        return turn in self._echoed or (turn in self._sent and turn not in self._asked_again)

    def were_received(self, turns: Sequence[int]) -> bool:
        """Whether the answer with all these turns was received."""
        return bool(turns) and all(turn in self._echoed or turn in self._sent for turn in turns)

    def unreceived_turns(self) -> tuple[int, ...]:
        """Return the turns whose answers were not received, in order."""
        return tuple(sorted(turn for turn in self._committed if not self.is_received(turn)))
