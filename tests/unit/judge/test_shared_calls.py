"""The same question is asked once: callers share its call and then its cached answer; closing ends all calls."""

import asyncio
from typing import Any

import pytest

from rollout import Retry
from rollout.judge import Judge, JudgeClosed
from rollout.judge.answers import AnswerCache
from tests.unit.judge.stand_in import always, hang, in_turn, repeat_question, respond, serve_judge, verdict, wait_for


async def test_an_answer_is_cached_by_the_content_of_the_question() -> None:
    async with serve_judge(repeat_question) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("one") == "one"
        assert await judge.ask([{"role": "user", "content": "one"}]) == "one"
        assert await judge.ask([{"content": "one", "role": "user"}], temperature=None) == "one"
        assert len(server.questions) == 1
        await judge.ask("one", temperature=0)
        await judge.ask("one", seed=1)
        await judge.ask("two")
    assert server.questions == [
        {"model": "m", "messages": [{"role": "user", "content": "one"}]},
        {"model": "m", "messages": [{"role": "user", "content": "one"}], "temperature": 0},
        {"model": "m", "messages": [{"role": "user", "content": "one"}], "seed": 1},
        {"model": "m", "messages": [{"role": "user", "content": "two"}]},
    ]


@pytest.mark.parametrize("failed", [verdict("half", "content_filter"), verdict(""), respond(500, b"")])
async def test_a_failed_try_is_not_cached(failed: bytes) -> None:
    async with serve_judge(in_turn(failed, verdict("yes"))) as server, Judge(server.url, "m", max_tries=1) as judge:
        with pytest.raises(Retry):
            await judge.ask("well?")
        assert await judge.ask("well?") == "yes"


async def test_a_cache_of_size_zero_stores_nothing() -> None:
    async with serve_judge(always(verdict("yes"))) as server, Judge(server.url, "m", cache_size=0) as judge:
        await judge.ask("well?")
        await judge.ask("well?")
    assert len(server.questions) == 2


async def test_the_least_recently_used_answer_is_removed() -> None:
    async with serve_judge(repeat_question) as server, Judge(server.url, "m", cache_size=2) as judge:
        for question in ("one", "two", "one", "three", "one", "two"):
            await judge.ask(question)
    assert [body["messages"][0]["content"] for body in server.questions] == ["one", "two", "three", "two"]


def test_the_cache_is_bounded_in_bytes() -> None:
    answers = AnswerCache(1000, max_bytes=100_000)
    for number in range(1000):
        answers.add(number.to_bytes(4, "big"), "x" * 1000)
        answers.add(number.to_bytes(4, "big"), "y" * 1000)
    assert 50 < len(answers) < 100
    assert answers.get((999).to_bytes(4, "big")) == "y" * 1000


@pytest.mark.parametrize("cache_size", [0, 10])
async def test_many_callers_with_the_same_question_share_one_call(cache_size: int) -> None:
    release = asyncio.Event()
    async with serve_judge(wait_for(release)) as server, Judge(server.url, "m", cache_size=cache_size) as judge:
        asking = [asyncio.ensure_future(judge.ask("well?")) for _ in range(50)]
        await server.arrived.wait()
        release.set()
        assert await asyncio.gather(*asking) == ["yes"] * 50
    assert len(server.questions) == 1


async def test_callers_that_share_a_failed_call_get_an_error_each() -> None:
    async with serve_judge(always(respond(500, b""))) as server, Judge(server.url, "m", max_tries=1) as judge:
        errors = await asyncio.gather(*(judge.ask("well?") for _ in range(5)), return_exceptions=True)
    assert len(server.questions) == 1
    assert all(isinstance(error, Retry) for error in errors)
    assert len({id(error) for error in errors}) == 5


async def test_a_caller_that_is_cancelled_does_not_cancel_the_call_of_others() -> None:
    release = asyncio.Event()
    async with serve_judge(wait_for(release)) as server, Judge(server.url, "m") as judge:
        first, second = (asyncio.ensure_future(judge.ask("well?")) for _ in range(2))
        await server.arrived.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        release.set()
        assert await second == "yes"
    assert len(server.questions) == 1


async def test_a_call_without_callers_is_cancelled_and_others_can_run() -> None:
    first = True

    async def behave(body: dict[str, Any]) -> bytes:
        nonlocal first
        hangs, first = first, False
        return await (hang if hangs else repeat_question)(body)

    async with serve_judge(behave) as server, Judge(server.url, "m", max_concurrent=1) as judge:
        callers = [asyncio.ensure_future(judge.ask("well?")) for _ in range(2)]
        await server.arrived.wait()
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        async with asyncio.timeout(30):
            assert await judge.ask("well?") == "well?"


async def test_closing_ends_the_running_calls_with_a_named_error() -> None:
    async with serve_judge(hang) as server:
        async with Judge(server.url, "m", max_concurrent=1) as judge:
            asking = [asyncio.ensure_future(judge.ask(f"question {number % 3}")) for number in range(6)]
            await server.arrived.wait()
        outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 30)
    assert [type(outcome) for outcome in outcomes] == [JudgeClosed] * 6
    assert issubclass(JudgeClosed, Retry)


async def test_closing_ends_calls_that_did_not_start_yet() -> None:
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        asking = asyncio.ensure_future(judge.ask("well?"))
        await asyncio.sleep(0)
    with pytest.raises(JudgeClosed):
        await asyncio.wait_for(asking, 30)


async def test_a_closed_judge_does_not_answer_even_from_its_cache() -> None:
    async with serve_judge(always(verdict("yes"))) as server:
        judge = Judge(server.url, "m")
        await judge.ask("well?")
        await judge.close()
        await judge.close()
        with pytest.raises(JudgeClosed, match=f"the judge at {server.url} was closed"):
            await judge.ask("well?")
