"""A game: the model guesses a number, and gets the hint "Higher." or "Lower."."""

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from rollout import EnvironmentSettings, MultiTurnEnvironment, Reply, Score, Task, Turn


class GuessSettings(EnvironmentSettings):
    """The keys of the section `environment` in the YAML."""

    highest: int = 100  # the greatest possible number
    max_guesses: int = 7  # after this many wrong guesses, the reward is 0


class GuessNumber(MultiTurnEnvironment):
    """Plays one game. Each rollout has its own instance, which holds its state."""

    Settings: ClassVar[type[EnvironmentSettings]] = GuessSettings
    settings: GuessSettings

    async def reset(self, task: Task) -> Sequence[dict[str, Any]]:
        """Return the first messages. The seed determines the number."""
        self.number = random.Random(task.seed).randint(1, self.settings.highest)
        self.guesses = 0
        question = f"Guess my number, from 1 to {self.settings.highest}."
        return [{"role": "user", "content": question}]

    async def step(self, reply: Reply) -> Turn:
        """Check a guess, and return a hint, or the score at the end."""
        self.guesses += 1
        found = re.search(r"\d+", reply.text)
        guess = int(found[0]) if found else None
        if guess == self.number or self.guesses == self.settings.max_guesses:
            reward = 1.0 if guess == self.number else 0.0
            return Turn(score=Score(reward, metrics={"guesses": self.guesses}))
        if guess is None:
            hint = "Say a number."
        elif guess < self.number:
            hint = "Higher."
        else:
            hint = "Lower."
        return Turn([{"role": "user", "content": hint}])
