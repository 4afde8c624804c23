"""The calls of one answer run at the same time, and each gets an answer that the model can read."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel
from structlog.testing import capture_logs

from rollout import Retry, Tool, tool
from rollout.engine.errors import EngineError
from rollout.environments.base import WrongReturn
from rollout.environments.tool_running import ToolRunner
from rollout.judge import JudgeRefused
from rollout.records.messages import Message, ToolCall

FOREVER = 3600


def runner(*tools: Tool[..., Any], timeout: float = FOREVER, max_result_chars: int = 1000) -> ToolRunner:
    return ToolRunner({each.name: each for each in tools}, None, timeout, max_result_chars)


def call(name: str, at: int = 0, **arguments: Any) -> ToolCall:
    return ToolCall(f"call-{at}", name, arguments)


async def messages_of(running: ToolRunner, *calls: ToolCall) -> list[Message]:
    return [answered.message for answered in await running.answer(calls)]


async def content(made: Tool[..., Any], **options: Any) -> Any:
    (message,) = await messages_of(runner(made, **options), call(made.name))
    return message["content"]


def raises(error: BaseException) -> Tool[..., Any]:
    @tool
    async def fail() -> None:
        """Fail."""
        raise error

    return fail


def raises_in_a_thread(error: BaseException) -> Tool[..., Any]:
    @tool
    def fail() -> None:
        """Fail."""
        raise error

    return fail


def returns(value: Any) -> Tool[..., Any]:
    @tool
    async def give() -> Any:
        """Give."""
        return value

    return give


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end of the test, for threads that wait for it."""
    event = threading.Event()
    yield event
    event.set()


async def test_calls_run_at_the_same_time_and_their_answers_are_in_the_order_of_the_calls() -> None:
    barrier, gate = threading.Barrier(3), asyncio.Event()

    @tool
    def meet(number: int) -> int:
        """Meet the others."""
        barrier.wait(60)
        time.sleep(0.02 * (3 - number))
        return number

    @tool
    async def first() -> str:
        """Wait for the last."""
        await gate.wait()
        return "first"

    @tool
    async def last() -> str:
        """Open the gate."""
        gate.set()
        return "last"

    calls = [call("first"), *(call("meet", n, number=n) for n in range(3)), call("last", 9)]
    messages = await messages_of(runner(meet, first, last), *calls)
    assert [message["content"] for message in messages] == ["first", "0", "1", "2", "last"]
    assert messages[1] == {"role": "tool", "tool_call_id": "call-0", "name": "meet", "content": "0"}


async def test_functions_run_in_a_thread_and_coroutines_on_the_event_loop() -> None:
    @tool
    def in_thread() -> str:
        """Say where."""
        return threading.current_thread().name

    @tool
    async def on_loop() -> str:
        """Say where."""
        return threading.current_thread().name

    assert await content(in_thread) != threading.current_thread().name
    assert await content(on_loop) == threading.current_thread().name


async def test_a_function_that_wraps_a_coroutine_is_awaited() -> None:
    async def inner() -> str:
        return "inside"

    @tool
    def outer() -> Any:
        """Wrap."""
        return inner()

    assert await content(outer) == "inside"


async def test_a_function_that_hangs_is_abandoned_after_its_timeout(released: threading.Event) -> None:
    @tool(timeout=0.05)
    def hang() -> None:
        """Hang."""
        released.wait()

    with capture_logs() as logs:
        assert await content(hang) == "Error: hang did not end within 0.05 s."
    assert [(entry["event"], entry["tool"]) for entry in logs] == [("a tool did not end in time", "hang")]


async def test_a_coroutine_that_hangs_is_cancelled_after_the_timeout_and_may_clean_up() -> None:
    ended = []

    @tool
    async def hang() -> None:
        """Hang."""
        try:
            await asyncio.sleep(FOREVER)
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    assert await content(hang, timeout=0.05) == "Error: hang did not end within 0.05 s."
    assert ended == ["cleaned up"]


async def test_a_coroutine_that_ignores_its_cancellation_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.environments.tool_running._CLEANUP_TIMEOUT", 0.02)
    ended = asyncio.Event()

    @tool
    async def stay() -> None:
        """Stay."""
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()

    with capture_logs() as logs:
        assert await content(stay, timeout=0.02) == "Error: stay did not end within 0.02 s."
    assert logs[0]["event"] == "a tool ignores its cancellation, and is left behind"
    ended.set()
    await asyncio.sleep(0)


async def test_a_cancellation_ends_every_tool(released: threading.Event) -> None:
    started, ended = asyncio.Event(), []

    @tool
    async def wait() -> None:
        """Wait."""
        started.set()
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            ended.append("wait")
            raise

    @tool
    def block() -> None:
        """Block."""
        released.wait()

    answering = asyncio.ensure_future(runner(wait, block).answer([call("wait"), call("block")]))
    await started.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert ended == ["wait"]


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    @property
    def __cause__(self) -> Any:
        raise SystemExit(4)

    @__cause__.setter
    def __cause__(self, _: Any) -> None: ...


@pytest.mark.parametrize("kind", [raises, raises_in_a_thread])
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("no such\n  city"), "Error: ValueError: no such city"),
        (KeyError("b"), "Error: KeyError: 'b'"),
        (ExceptionGroup("two", [ValueError("a"), OSError("b")]), "Error: ValueError: a; OSError: b"),
        (SystemExit(3), "Error: SystemExit: 3"),
        (KeyboardInterrupt(), "Error: KeyboardInterrupt:"),
        (GeneratorExit(), "Error: GeneratorExit:"),
        (ValueError("cut \ud83d"), "Error: ValueError: cut \\ud83d"),
        (ValueError("x" * 5000), f"Error: ValueError: {'x' * 988}…"),
        (Hostile(), "Error: RuntimeError: a Hostile that cannot be printed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_an_error_of_a_tool_is_one_line_for_the_model_and_a_traceback_in_the_log(
    kind: Any, error: BaseException, shown: str
) -> None:
    with capture_logs() as logs:
        assert await content(kind(error)) == shown
    assert [(entry["event"], entry["log_level"], entry["tool"]) for entry in logs] == [
        ("a tool raised an error", "warning", "fail")
    ]
    if isinstance(error, KeyError):
        assert 'test_tool_running.py", line' in logs[0]["exception"]
        assert "raise error" in logs[0]["exception"]


async def test_a_tool_that_cancels_itself_ends_only_its_own_call() -> None:
    assert await content(raises(asyncio.CancelledError())) == "Error: RuntimeError: the tool cancelled itself"


@pytest.mark.parametrize("kind", [raises, raises_in_a_thread])
@pytest.mark.parametrize(
    "error",
    [Retry("no judge"), ExceptionGroup("both", [Retry("no judge"), ExceptionGroup("in", [Retry("no sandbox")])])],
    ids=["alone", "in a group"],
)
async def test_a_retry_ends_the_attempt_and_the_other_calls(kind: Any, error: BaseException) -> None:
    ended = []

    @tool
    async def wait() -> None:
        """Wait."""
        try:
            await asyncio.sleep(FOREVER)
        finally:
            ended.append("wait")

    with pytest.raises(Retry, match="no judge"):
        await runner(kind(error), wait).answer([call("wait"), call("fail")])
    assert ended == ["wait"]


async def test_a_retry_beside_a_bug_hides_no_bug() -> None:
    mixed = ExceptionGroup("both", [ValueError("a bug"), Retry("no judge")])
    assert await content(raises(mixed)) == "Error: ValueError: a bug; Retry: no judge"


async def test_a_refusal_of_the_judge_is_not_shown_to_the_model() -> None:
    with pytest.raises(JudgeRefused, match="401"):
        await content(raises(JudgeRefused("the judge answered 401")))


async def test_a_failure_of_our_infrastructure_ends_the_attempt() -> None:
    class EngineGone(EngineError):
        infrastructure = True

    with pytest.raises(EngineGone):
        await content(raises(EngineGone("no engine")))


async def test_an_interruption_by_the_watchdog_ends_the_attempt() -> None:
    class Interrupted(BaseException):
        pass

    with pytest.raises(Interrupted):
        await content(raises(Interrupted()))


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (call("subtract"), "Error: there is no tool 'subtract'; the tools are add."),
        (call("add", a="x"), "Error: the arguments of add are not valid: `a`: Input should be a valid integer, "),
        (call("add"), "Error: the arguments of add are not valid: `a`: is missing."),
        (
            ToolCall("1", "add", {}, "{", "invalid_json"),
            "Error: this call cannot be read (invalid_json), so no tool ran",
        ),
    ],
    ids=["unknown tool", "wrong argument", "missing argument", "malformed"],
)
async def test_the_answer_to_a_call_that_no_tool_can_run_says_why(made: ToolCall, shown: str) -> None:
    with capture_logs() as logs:
        (message,) = await messages_of(runner(add), made)
    assert message["content"].startswith(shown)
    assert (message["tool_call_id"], message["name"]) == (made.id, made.name)
    assert logs == []


async def test_the_answer_to_a_call_without_a_name_has_a_name() -> None:
    (message,) = await messages_of(runner(add), ToolCall("1", "", {}, "{", "unclosed_block"))
    assert message["name"] == "unknown"


async def test_more_calls_than_run_at_once_are_all_answered() -> None:
    messages = await messages_of(runner(add), *(call("add", n, a=n, b=0) for n in range(100)))
    assert [message["content"] for message in messages] == [str(n) for n in range(100)]


class Place(BaseModel):
    name: str
    where: tuple[int, int]


PICTURE = Image.new("RGB", (4, 4), "red")


@pytest.mark.parametrize(
    ("returned", "written"),
    [
        ("text", "text"),
        ("", ""),
        (None, "Done."),
        (3, "3"),
        (True, "true"),
        ({"a": [1, None, "ü"]}, '{"a":[1,null,"ü"]}'),
        (["a", "b"], '["a","b"]'),
        (Place(name="x", where=(1, 2)), '{"name":"x","where":[1,2]}'),
        (float("nan"), "NaN"),
        (np.float32(0.5), "0.5"),
        ("cut \ud83d", "cut \\ud83d"),
        (PICTURE, [{"type": "image", "image": PICTURE}]),
        (
            ("a map:", PICTURE, {"scale": 2}),
            [
                {"type": "text", "text": "a map:"},
                {"type": "image", "image": PICTURE},
                {"type": "text", "text": '{"scale":2}'},
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_result_becomes_text_or_parts_or_json(returned: Any, written: Any) -> None:
    assert await content(returns(returned)) == written


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (np.zeros((2, 2, 3), np.uint8), r"a ndarray; if it is an image, write Image\.fromarray\(array\), with Image"),
        ([np.zeros((2, 2))], r"a list that holds a ndarray; if it is an image, write Image\.fromarray\(array\)"),
        (b"\x89PNG", r"a bytes; decode them to text, or, if they are an image, write Image\.open\(io\.BytesIO\(data"),
        ({"map": PICTURE}, "a dict that holds an Image; return images alone, or in a list beside texts"),
        (object(), "an object; return text, a Pillow image, a list of both, or values with a JSON form: "),
        ({"x": object()}, "a dict; return text, a Pillow image, a list of both, or values with a JSON form: "),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_result_that_no_message_can_contain_fails_the_rollout_with_a_fix(returned: Any, problem: str) -> None:
    with pytest.raises(
        WrongReturn, match=rf"^the tool .*give \(.+test_tool_running\.py, line \d+\) returned {problem}"
    ):
        await content(returns(returned))


async def test_a_text_that_is_too_long_is_cut_with_a_note() -> None:
    assert await content(returns("x" * 12), max_result_chars=4) == "xxxx\n… (cut off: the first 4 of 12 characters)"
    parts = await content(returns(["abc", PICTURE, "defgh", "ij"]), max_result_chars=5)
    texts = [part.get("text") for part in parts]
    assert texts == ["abc", None, "de\n… (cut off: the first 2 of 5 characters)"]


async def test_a_result_of_too_many_values_is_an_error_for_the_model() -> None:
    nested: list[Any] = []
    for _ in range(20):
        nested = [nested, nested]
    assert (await content(returns(nested))).startswith("Error: the result holds more than 131,072 values, or is nested")
