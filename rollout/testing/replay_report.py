"""The report of a replay: the first turn that differs from the record, or the differences at the end."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import indent
from typing import Any, Literal

from rollout.records.messages import Message
from rollout.testing.message_text import message_lines

_MAX_DIFF_LINES = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between the replay and the record.

    Attributes:
        what: what differs: the `messages` or `tools` that the model got, the number of `turns`, the `score`, or the
            final `error`.
        turn: the number of the turn that differs, as in `Reply.turn`; None means the end of the rollout.
        text: a description of the difference, in one line.
        details: the lines of a diff, or of the traceback of an error.
    """

    what: Literal["messages", "tools", "turns", "score", "error"]
    turn: int | None
    text: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = "at the end" if self.turn is None else f"turn {self.turn}"
        return "\n".join([f"{place}: {self.text}", *(indent(line, "    ") for line in self.details)])


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The result of a replay.

    Attributes:
        rollout: the full name of the recorded rollout, RUN/ENVIRONMENT/ROLLOUT.
        recorded_turns: the number of turns in the record.
        same_turns: the number of recorded turns that are the same in the replay.
        differences: the differences; empty if there are none.
        notes: facts that explain the report, such as how the recorded rollout ended.
    """

    rollout: str
    recorded_turns: int
    same_turns: int
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the messages, the tools and the score are the same as recorded."""
        return not self.differences

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        verdict = "the same as recorded" if self.same else "different"
        yield f"{self.rollout}: {verdict}; {self.same_turns} of {self.recorded_turns} turns are the same"
        yield from self.notes
        for difference in self.differences:
            yield from str(difference).splitlines()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-like data."""
        return {"rollout": self.rollout, "same": self.same, **asdict(self)}


def compare_messages(turn: int, recorded: Sequence[Message], today: Sequence[Message], index: int) -> Difference:
    """Return the difference of two conversations in canonical form; `index` is the first message that differs."""
    old, new = (messages[index] if index < len(messages) else None for messages in (recorded, today))
    if old is None:
        text = f"messages[{index}] is new; the recorded conversation has {len(recorded)} messages"
    elif new is None:
        text = f"messages[{index}] is missing; the recorded conversation has {len(recorded)} messages"
    else:
        text = f"messages[{index}] is different"
    old_lines, new_lines = (list(message_lines(message)) if message else [] for message in (old, new))
    if old_lines == new_lines:  # the texts are the same, but the JSON differs
        old_lines, new_lines = _json_lines(old), _json_lines(new)
    return Difference("messages", turn, text, _diff(old_lines, new_lines))


def compare_tools(
    turn: int, recorded: Sequence[Mapping[str, Any]] | None, today: Sequence[Mapping[str, Any]] | None
) -> Difference:
    """Return the difference between the recorded tools and the tools of the replay."""
    details = _diff(_json_lines(list(recorded or ())), _json_lines(list(today or ())))
    return Difference("tools", turn, "the tools are different", details)


def _json_lines(value: Any) -> list[str]:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).splitlines()


def _diff(recorded: Sequence[str], today: Sequence[str]) -> tuple[str, ...]:
    lines = list(difflib.unified_diff(recorded, today, "recorded", "today", lineterm="", n=2))
    if len(lines) > _MAX_DIFF_LINES:
        lines = [*lines[:_MAX_DIFF_LINES], f"… and {len(lines) - _MAX_DIFF_LINES} more lines"]
    return tuple(lines)
