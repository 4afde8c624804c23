"""Plays the environment with fixed answers, and checks the results."""

import re
from collections.abc import Sequence
from typing import Any

from rollout.testing import Answer, PlayRollout

from rollout.templates.tools.environment import PRICES, Shopping


def tool_results(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Return the results of all tool calls in a conversation."""
    return [message["content"] for message in messages if message["role"] == "tool"]


def test_the_right_sum_has_the_reward(play_rollout: PlayRollout) -> None:
    """A model that asks for the prices and pays their sum gets both rewards."""

    def buy(conversation: list[dict[str, Any]]) -> str | Answer:
        wanted = re.findall(r"(\d+) x (\w+)", conversation[0]["content"])
        results = tool_results(conversation)
        if not results:
            calls = [("price", {"fruit": fruit}) for _, fruit in wanted]
            return Answer(tool_calls=calls)
        if len(results) == len(wanted):
            amount = sum(int(count) * PRICES[fruit] for count, fruit in wanted)
            return Answer(tool_calls=[("pay", {"amount": amount})])
        return "Done."

    played = play_rollout(Shopping, answers=buy)
    assert played.rewards == {"paid": 1.0, "ended": 1.0}


def test_an_unknown_fruit_has_no_price(play_rollout: PlayRollout) -> None:
    """The result of the call lists the known fruits."""
    ask = Answer(tool_calls=[("price", {"fruit": "kiwi"})])
    played = play_rollout(Shopping, answers=[ask, "I cannot."])
    (result,) = tool_results(played.messages)
    assert "there is no kiwi; there are apple" in result
    assert played.rewards == {"paid": 0.0, "ended": 1.0}
