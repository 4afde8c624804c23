"""An environment with tools: its rollouts on the embedded engine, its scores, and which classes are refused."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from rollout import Reply, Retry, RolloutLimit, Score, Task, Tool, ToolEnvironment, ToolSettings, Turn, tool
from rollout.config.environment_class import class_problem, require_usable
from rollout.environments.base import EnvironmentSettings, WrongReturn
from rollout.environments.tools import ToolUnusable
from rollout.records.endings import RolloutStatus
from rollout.records.messages import FinishReason, Message, ToolCall
from rollout.testing import embedded_policy, play
from rollout.trainer import check
from rollout.trainer.trajectory import Trajectory

POLICIES = "tests.unit.environments.tool_policies"
TASK = Task("0", 0, 1)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Desk(ToolEnvironment):
    """Has one tool from outside and three of its own: one hangs, and one raises an error."""

    functions: ClassVar[Sequence[Tool[..., Any]]] = [add]

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        self.released = threading.Event()
        self.scored: list[Reply] = []

    async def reset(self, task: Task) -> Sequence[Message]:
        return [{"role": "user", "content": "Work."}]

    @tool(timeout=0.1)
    def hang(self) -> None:
        """Hang."""
        self.released.wait()

    @tool
    async def fail(self) -> None:
        """Fail."""
        raise ValueError("not today")

    @tool
    def look(self) -> list[Any]:
        """Look at the desk."""
        return ["the desk:", Image.new("RGB", (64, 64), "red")]

    async def score(self, reply: Reply) -> Any:
        self.scored.append(reply)
        return Score(rewards={"answer": 1.0, "form": 0.5}, weights={"form": 0.1})


async def played(desk: Desk, directory: Path, script: str) -> Trajectory:
    try:
        async with embedded_policy(directory, script=f"{POLICIES}:{script}", sampling={"max_tokens": 1024}) as policy:
            trajectory = (await play(desk, TASK, policy=policy)).trajectory
    finally:
        desk.released.set()
    assert check(trajectory) == []
    return trajectory


def desk(**keys: Any) -> Desk:
    return Desk(ToolSettings(**keys))


def reply(text: str = "", *calls: ToolCall) -> Reply:
    return Reply({"role": "assistant", "content": text}, text, FinishReason.STOP, calls)


CALL = ToolCall("1", "add", {"a": 1, "b": 2})


async def test_eight_parallel_calls_are_answered_in_order_though_one_hangs_and_one_raises(tmp_path: Path) -> None:
    made = desk()
    trajectory = await played(made, tmp_path, "EightCalls")
    assert (trajectory.status, trajectory.limit) == (RolloutStatus.OK, RolloutLimit.NONE)
    assert made.scored[0].text == "8 results, 2 errors, 1 images"
    messages = [message for message in made.conversation if message["role"] == "tool"]
    assert [message["name"] for message in messages] == ["hang", "fail", "look", *["add"] * 5]
    contents = [message["content"] for message in messages]
    assert contents[:2] == ["Error: hang did not end within 0.1 s.", "Error: ValueError: not today"]
    assert [part["type"] for part in contents[2]] == ["text", "image_url"]
    assert contents[3:] == [str(n + 1) for n in range(3, 8)]
    assert trajectory.steps[0].tools == list(Desk.tools or ())
    assert [step.prompt_source for step in trajectory.steps] == ["first", "bridge"]


async def test_calls_that_cannot_be_read_are_answered_like_other_calls(tmp_path: Path) -> None:
    made = desk()
    trajectory = await played(made, tmp_path, "BrokenCall")
    assert (trajectory.status, made.scored[0].text) == (RolloutStatus.OK, "sorry")
    assert [message["role"] for message in made.conversation] == [
        *("user", "assistant", "tool", "tool", "assistant", "tool")
    ]
    assert [step.prompt_source for step in trajectory.steps] == ["first", "bridge", "bridge"]


async def test_after_the_last_turn_the_score_has_the_limit_turns_and_keeps_its_rewards(tmp_path: Path) -> None:
    made = desk(max_turns=3)
    trajectory = await played(made, tmp_path, "CallsForever")
    assert (trajectory.status, trajectory.limit, len(trajectory.steps)) == (RolloutStatus.OK, RolloutLimit.TURNS, 3)
    assert {name: reward.value for name, reward in trajectory.rewards.items()} == {"answer": 1.0, "form": 0.5}
    assert trajectory.reward == 1.05
    assert [call.name for call in made.scored[0].tool_calls] == ["add"]


class Scores(Desk):
    """Returns the score that a test sets."""

    returned: Any = None

    async def score(self, reply: Reply) -> Any:
        return self.returned


async def score_of(returned: Score, *calls: ToolCall) -> Score:
    """Return what an answer in the last turn scores, if `score` returns this."""
    made = Scores(ToolSettings(max_turns=1))
    made.returned = returned
    score = (await made.step(reply("3", *calls))).score
    assert score is not None
    return score


async def test_a_score_may_name_another_limit() -> None:
    assert (await score_of(Score(0.0, limit="time"), CALL)).limit == "time"


async def test_an_answer_without_a_call_in_the_last_turn_has_no_limit() -> None:
    score = await score_of(Score(0.5))
    assert (score.reward, score.limit) == (0.5, RolloutLimit.NONE)


async def test_calls_and_errors_are_metrics_of_the_score_unless_it_has_its_own(tmp_path: Path) -> None:
    assert (await played(desk(), tmp_path, "EightCalls")).metrics == {"tool_calls": 8.0, "tool_errors": 2.0}
    score = await score_of(Score(0.5, {"tool_calls": 7.0}))
    assert score.metrics == {"tool_calls": 7.0, "tool_errors": 0.0}


async def test_the_error_of_a_score_of_another_type_has_its_line() -> None:
    made = Scores(ToolSettings())
    made.returned = 1.0
    with pytest.raises(
        WrongReturn, match=r"^Scores\.score \(.+test_tool_environment\.py, line \d+\) returned a float; "
    ):
        await made.step(reply("3"))


async def test_the_error_of_a_score_that_cannot_be_recorded_names_the_method(tmp_path: Path) -> None:
    made = Scores(ToolSettings())
    made.returned = Score(float("nan"))
    trajectory = await played(made, tmp_path, "EightCalls")
    assert trajectory.error is not None
    assert re.match(r"Scores\.score \(.+, line \d+\) returned a Score that cannot be", trajectory.error["message"])


async def test_a_retry_in_a_tool_ends_the_attempt() -> None:
    class Broken(Desk):
        @tool
        async def fail(self) -> None:
            """Fail."""
            raise Retry("the sandbox is gone")

    with pytest.raises(Retry, match="the sandbox is gone"):
        await Broken(ToolSettings()).step(reply("", ToolCall("1", "fail", {})))


def test_tools_are_found_in_the_order_of_the_code_and_subclasses_replace_and_remove_them() -> None:
    class Small(Desk):
        functions: ClassVar[Sequence[Tool[..., Any]]] = ()
        hang = None  # type: ignore[assignment]

        @tool(name="see")
        def look(self) -> list[Any]:
            """Look closer."""
            return []

        @tool
        def ask(self) -> None:
            """Ask."""

    def names(environment: type[ToolEnvironment]) -> list[str]:
        return [schema["function"]["name"] for schema in environment.tools or ()]

    assert names(Desk) == ["hang", "fail", "look", "add"]
    assert names(Small) == ["fail", "see", "ask"]


def test_a_tool_environment_is_usable_and_its_schemas_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_problem(Desk) is None
    require_usable(desk, "my:Desk")
    monkeypatch.setattr(Desk, "tools", ({"type": "function", "function": {"name": ""}},))
    with pytest.raises(Exception, match=re.escape("my:Desk.tools: tools[0] has a \"name\" that is ''")):
        require_usable(desk, "my:Desk")


def test_a_score_that_is_not_a_coroutine_is_refused() -> None:
    plain = type("Plain", (Desk,), {"score": lambda self, reply: Score(1.0)})
    assert class_problem(plain) == "has a method score that is not a coroutine; write `async def score`"


def test_an_environment_without_tools_is_refused() -> None:
    class Empty(ToolEnvironment):
        reset, score = Desk.reset, Desk.score

    with pytest.raises(Exception, match="Empty has no tools; write `@tool` above its methods, or list functions"):
        require_usable(lambda: Empty(ToolSettings()), "my:Empty")


@tool(name="add")
def add_all(numbers: list[int]) -> int:
    """Add all."""
    return sum(numbers)


def make_static() -> Any:
    class Holder:
        @staticmethod
        @tool
        def other(self: int) -> None:
            """Other."""

    return vars(Holder)["other"]


def make_close() -> Any:
    class Holder:
        @tool
        def reset(self) -> None:
            """Reset the desk."""

    return vars(Holder)["reset"]


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        (lambda: {"functions": [add, add_all]}, "has two tools with the name 'add'; write `@tool(name=…)` above one."),
        (lambda: {"functions": [add.function]}, "functions has a function; write `@tool` above the function."),
        (lambda: {"functions": add}, "functions is a Tool; expected a list of tools."),
        (lambda: {"functions": [Desk.look]}, "functions contains the method <tool look>; list only"),
        (
            lambda: {"tools": [add]},
            "sets `tools`, but this is computed from its tools; list functions with `@tool` in",
        ),
        (lambda: {"Settings": EnvironmentSettings}, "Settings is EnvironmentSettings, which has no max_turns; make it"),
        (lambda: {"other": make_static()}, "other is a staticmethod; make it a method with `self`"),
        (lambda: {"reset": make_close()}, "reset replaces an attribute of all environments; rename the"),
        (lambda: {"look": lambda self: None}, "look replaces a tool, but is not a tool itself; write `@tool` above it"),
    ],
    ids=["twice", "no tool", "no list", "method", "tools", "settings", "static", "reserved", "overridden"],
)
def test_a_class_whose_tools_conflict_is_refused(attributes: Callable[[], dict[str, Any]], problem: str) -> None:
    with pytest.raises(ToolUnusable, match=re.escape(problem)):
        type("Other", (Desk,), attributes())


class Submits(Desk):
    """Ends its rollout from a tool."""

    submitted: int | None = None

    @tool
    async def submit(self, answer: int) -> None:
        """Hand in the answer."""
        self.submitted = answer

    async def step(self, reply: Reply) -> Turn:
        turn = await super().step(reply)
        return turn if self.submitted is None else Turn(score=Score(float(self.submitted == 3)))


async def test_a_tool_may_end_the_rollout_through_step() -> None:
    made = Submits(ToolSettings())
    assert (await made.step(reply("", CALL))).score is None
    assert (await made.step(reply("", ToolCall("2", "submit", {"answer": 3})))).score == Score(1.0)
