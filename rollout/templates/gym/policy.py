"""A script that answers instead of a model, so that no GPU is needed."""

from collections import deque
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}


class Walker:
    """Takes the shortest way; if the temperature is above 0, not always."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        best = first_step(last_map(prompt))
        return [AnswerSlot({step: 4.0 if step == best else 0.0 for step in STEPS})]


def last_map(prompt: str) -> list[str]:
    """Return the rows of the map in the user's last message."""
    message = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    return [row for row in message.splitlines() if row and set(row) <= set("*SFHG")]


def first_step(rows: Sequence[str]) -> str:
    """Return the first step of the shortest way to the goal (breadth-first search)."""
    cells = [row.replace("*", "") for row in rows]
    stars = [(y, row.index("*")) for y, row in enumerate(rows) if "*" in row]
    if not stars:
        return "left"  # this is another game, which the script does not know
    start = stars[0]
    ways: deque[tuple[tuple[int, int], str]] = deque([(start, "")])
    seen = {start}
    while ways:
        (y, x), first = ways.popleft()
        if cells[y][x] == "G":
            return first
        for step, (down, right) in STEPS.items():
            cell = (y + down, x + right)
            inside = 0 <= cell[0] < len(cells) and 0 <= cell[1] < len(cells[0])
            if inside and cell not in seen and cells[cell[0]][cell[1]] != "H":
                seen.add(cell)
                ways.append((cell, first or step))
    return "left"
