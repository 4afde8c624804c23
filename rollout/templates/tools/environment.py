"""A purchase: the model looks up prices with a tool, and pays with another tool."""

import random
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from rollout import (
    EnvironmentSettings,
    Reply,
    Score,
    Task,
    Tool,
    ToolEnvironment,
    ToolSettings,
    tool,
)

PRICES = {"apple": 3, "banana": 2, "cherry": 7, "melon": 9, "pear": 4}


@tool
def price(fruit: str) -> int:
    """Look up what one piece of a fruit costs.

    Args:
        fruit: its name, in the singular.
    """
    if fruit not in PRICES:  # the model reads this error, and may try again
        raise ValueError(f"there is no {fruit}; there are {', '.join(PRICES)}")
    return PRICES[fruit]


Amount = Annotated[int, Field(ge=1, description="the sum of all prices")]


class ShoppingSettings(ToolSettings):
    """The keys of the section `environment`, besides those of `ToolSettings`."""

    most: int = 5  # the limit for pieces of each fruit


class Shopping(ToolEnvironment):
    """Plays until the model answers without a tool call."""

    Settings: ClassVar[type[EnvironmentSettings]] = ShoppingSettings
    settings: ShoppingSettings
    functions: ClassVar[Sequence[Tool[..., Any]]] = [price]

    async def reset(self, task: Task) -> Sequence[dict[str, Any]]:
        """Return the first messages. The seed determines what to buy."""
        rng = random.Random(task.seed)
        fruit = rng.sample(sorted(PRICES), 2)
        counts = [rng.randint(1, self.settings.most) for _ in fruit]
        self.paid = 0
        basket = list(zip(fruit, counts, strict=True))
        self.sum = sum(PRICES[name] * count for name, count in basket)
        wanted = " and ".join(f"{count} x {name}" for name, count in basket)
        question = f"Buy {wanted}: pay what they cost together."
        return [{"role": "user", "content": question}]

    @tool
    async def pay(self, amount: Amount) -> str:
        """Pay for everything at once."""
        self.paid += amount
        return "Thank you."

    async def score(self, reply: Reply) -> Score:
        """Return the score of the rollout; `reply` is the last answer."""
        paid, ended = self.paid == self.sum, not reply.tool_calls
        rewards = {"paid": float(paid), "ended": float(ended)}
        return Score(rewards=rewards, weights={"paid": 0.9, "ended": 0.1})
