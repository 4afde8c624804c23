"""What is shown for an error in the user's own code."""

import asyncio
from collections.abc import Callable

import pytest

from rollout.environments.base import EnvironmentSettings, Reply
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.errors import ConfigurationError, describe_user_error, user_traceback
from rollout.records.messages import Message
from rollout.records.task import Task


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing was raised")


def shown(function: Callable[[], object]) -> str:
    traceback = user_traceback(raised(function))
    assert traceback is not None
    return traceback


class Resets(MultiTurnEnvironment):
    async def reset(self, task: Task) -> list[Message]:
        return deep(2)

    async def step(self, reply: Reply) -> Turn:
        raise NotImplementedError


def deep(calls: int) -> list[Message]:
    if calls:
        return deep(calls - 1)
    raise ValueError("a bug of its own")


def reset() -> None:
    asyncio.run(Resets(EnvironmentSettings()).run(Task("a", 0, 1), None))  # type: ignore[arg-type]


def test_every_frame_of_the_user_is_shown_and_none_of_ours() -> None:
    text = shown(reset)
    assert text.count(", in deep\n") == 3
    assert "in reset\n" in text
    assert text.endswith("ValueError: a bug of its own\n")
    assert "environments/base.py" not in text


def test_a_cause_is_shown_with_its_frames() -> None:
    def chained() -> None:
        try:
            deep(0)
        except ValueError as error:
            raise RuntimeError("consequence") from error

    text = shown(chained)
    assert text.index("ValueError: a bug of its own") < text.index("RuntimeError: consequence")
    assert "in deep\n" in text
    assert "in chained\n" in text


def test_every_member_of_a_group_is_shown_with_its_frames() -> None:
    def together() -> None:
        raise ExceptionGroup("both", [raised(lambda: deep(0)), raised(reset)])

    text = shown(together)
    assert text.count("ValueError: a bug of its own") == 2
    assert "environments/base.py" not in text


def test_for_an_error_that_we_raise_only_frames_of_the_user_are_shown() -> None:
    def misuse() -> None:
        from rollout.config.load import load_config

        load_config(__file__)  # type: ignore[arg-type]

    def refused() -> None:
        try:
            misuse()
        except Exception:  # noqa: BLE001
            raise ConfigurationError("a fix") from None

    assert "in refused" in shown(refused)
    assert "config/load.py" in shown(misuse), "a bug of ours is shown with all frames"


def test_without_a_frame_of_the_user_only_the_message_is_shown() -> None:
    assert describe_user_error(ValueError("a reason")) == "ValueError: a reason"


@pytest.mark.parametrize("code", ["def f(:", "  x = 1"])
def test_a_syntax_error_is_shown_with_its_line(code: str) -> None:
    text = describe_user_error(raised(lambda: compile(code, "/home/me/coin.py", "exec")))
    assert '  File "/home/me/coin.py", line 1' in text
