"""Knows for each turn of an endpoint whether the program received the answer; only such turns train."""

from collections import Counter
from collections.abc import Iterable, Sequence


class Deliveries:
    """The deliveries of one endpoint.

    An answer was received if a later request repeats it, or if its last byte was sent and the connection was not reset.
    If the program asks the same again after it received an answer, the earlier answer counts only if it is repeated:
    either the program lost it, or it preferred another one. The choices of one answer are received together.
    """

    def __init__(self) -> None:
        self._answers: dict[int, Sequence[int]] = {}
        self._echoed: set[int] = set()
        self._sent: Counter[int] = Counter()
        self._asked_again: set[int] = set()

    def add_turn(self, turn: int, answer: Sequence[int]) -> None:
        """Add a turn, which the program has not received yet. `answer` has the turns of all choices, as they come."""
        self._answers[turn] = answer

    def mark_echoed(self, turns: Iterable[int]) -> None:
        """A request repeated the answers of these turns, so they were received, and their other choices with them."""
        for turn in turns:
            if turn not in self._echoed:
                self._echoed.update(self._answers.get(turn, (turn,)))

    def mark_sent(self, turns: Iterable[int]) -> None:
        """The last byte of the answer with these turns was sent over one connection."""
        self._sent.update(turns)

    def mark_reset(self, turns: Iterable[int]) -> None:
        """One connection was reset after the last byte of an answer was sent, so the answer may be lost there."""
        self._sent.subtract(turns)

    def mark_asked_again(self, turns: Iterable[int]) -> None:
        """The program sent the same request again after it had received the answer."""
        self._asked_again.update(turns)

    def is_received(self, turn: int) -> bool:
        """Whether the program received the answer of a turn, and did not replace it by another one."""
        return turn in self._echoed or (self._sent[turn] > 0 and turn not in self._asked_again)

    def were_echoed(self, turns: Sequence[int]) -> bool:
        """Whether the program repeated the answer with these turns."""
        return bool(turns) and all(turn in self._echoed for turn in turns)

    def were_received(self, turns: Sequence[int]) -> bool:
        """Whether the answer with all these turns was received."""
        return bool(turns) and all(turn in self._echoed or self._sent[turn] > 0 for turn in turns)

    def unreceived_turns(self) -> tuple[int, ...]:
        """Return the turns whose answers were not received, in order."""
        return tuple(sorted(turn for turn in self._answers if not self.is_received(turn)))
