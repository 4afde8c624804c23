"""A gymnasium game: the model reads each state as text and answers with an action."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
from rollout import (
    EnvironmentSettings,
    MultiTurnEnvironment,
    Reply,
    RolloutLimit,
    Score,
    Task,
    Turn,
)

# For another game, change ACTIONS, the rules in reset, id and options in the YAML,
# and the script in policy.py.
ACTIONS = ("left", "down", "right", "up")
"""The words for FrozenLake's actions, in the order of their numbers."""


class LakeSettings(EnvironmentSettings):
    """The keys of the section `environment` in the YAML."""

    id: str = "FrozenLake-v1"  # id and options are arguments of gymnasium.make
    options: Mapping[str, Any] = {"map_name": "4x4", "is_slippery": False}
    max_turns: int = 20  # the limit for answers of the model


class Lake(MultiTurnEnvironment):
    """Plays one game. Each rollout has its own gymnasium environment."""

    Settings: ClassVar[type[EnvironmentSettings]] = LakeSettings
    settings: LakeSettings

    async def reset(self, task: Task) -> Sequence[dict[str, Any]]:
        """Return the first messages. The seed determines the game."""
        name, options = self.settings.id, self.settings.options
        self.game = gymnasium.make(name, render_mode="ansi", **options)
        if self.game.action_space != gymnasium.spaces.Discrete(len(ACTIONS)):
            space = self.game.action_space
            raise ValueError(f"{name} has {space}; write one word for each in ACTIONS")
        self.game.reset(seed=task.seed % 2**31)
        self.turns = 0
        self.total = 0.0
        words = ", ".join(ACTIONS)
        rules = f"Walk from S to G, and not into H. Answer with one word: {words}."
        return [{"role": "user", "content": f"{rules}\n{self.picture()}"}]

    async def step(self, reply: Reply) -> Turn:
        """Take an action, and return the new state or the score, with the reward."""
        self.turns += 1
        word = reply.text.strip(" .").lower()
        gained, ended = 0.0, False
        if word in ACTIONS:
            # If the game is slow, run it in a thread (anyio.to_thread).
            _, reward, terminated, truncated, _ = self.game.step(ACTIONS.index(word))
            gained, ended = float(reward), terminated or truncated
        self.total += gained
        if ended or self.turns == self.settings.max_turns:
            limit = RolloutLimit.NONE if ended else RolloutLimit.TURNS
            score = Score(self.total, metrics={"steps": self.turns}, limit=limit)
            return Turn(score=score, reward=gained)
        hint = "" if word in ACTIONS else f"Answer with one of {', '.join(ACTIONS)}.\n"
        message = {"role": "user", "content": f"{hint}{self.picture()}"}
        return Turn([message], reward=gained)

    def picture(self) -> str:
        """Return the map as text; a star marks the position of the model."""
        text = str(self.game.render())
        marked = text.replace("\x1b[41m", "*").replace("\x1b[0m", "")
        rows = marked.splitlines()  # a row in brackets is the last action
        return "\n".join(row for row in rows if row.strip() and "(" not in row)

    def close(self) -> None:
        """Close the game at the end of the rollout, also after an error."""
        if hasattr(self, "game"):
            self.game.close()
