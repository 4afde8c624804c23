"""Work is done once for all callers; a failure or a cancellation of one caller does not affect the others."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_vllm.errors import MaterialisationFailed  # type: ignore[import-not-found]
from rollout_vllm.single_flight import AsyncSingleFlightCache, Origin  # type: ignore[import-not-found]


@dataclass(frozen=True)
class Value:
    name: str
    nbytes: int = 1


class Work:
    """Returns the values that a test puts into `results`, and counts its starts."""

    def __init__(self) -> None:
        self.start_count = 0
        self.cancelled = 0
        self.results: asyncio.Queue[Value | BaseException] = asyncio.Queue()

    async def __call__(self) -> Value:
        self.start_count += 1
        try:
            result = await self.results.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(result, BaseException):
            raise result
        return result


async def let_tasks_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def work() -> Work:
    return Work()


def start_get(cache: Any, work: Callable[[], Awaitable[Value]], key: str = "key") -> "asyncio.Task[Any]":
    return asyncio.ensure_future(cache.get(key, work))


async def test_two_hundred_callers_at_once_share_the_work(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    asked = [start_get(cache, work) for _ in range(200)]
    await let_tasks_run()
    work.results.put_nowait(Value("a"))
    answers = await asyncio.gather(*asked)
    assert [origin for _, origin in answers] == [Origin.MADE] + [Origin.JOINED] * 199
    assert {value for value, _ in answers} == {Value("a")}
    assert await cache.get("key", work) == (Value("a"), Origin.KEPT)
    assert work.start_count == 1


async def test_if_half_of_the_callers_are_cancelled_the_others_succeed(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    asked = [start_get(cache, work) for _ in range(200)]
    await let_tasks_run()
    for task in asked[::2]:  # among them the first one, which started the work
        task.cancel()
    await let_tasks_run()
    work.results.put_nowait(Value("a"))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(answer == (Value("a"), Origin.JOINED) for answer in answers[1::2])
    assert (work.start_count, work.cancelled) == (1, 0)


async def test_the_work_is_cancelled_with_its_last_caller(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    asked = [start_get(cache, work) for _ in range(3)]
    await let_tasks_run()
    for task in asked:
        task.cancel()
    await let_tasks_run()
    assert (work.start_count, work.cancelled, cache.nbytes) == (1, 1, 0)
    later = start_get(cache, work)
    await let_tasks_run()
    work.results.put_nowait(Value("b"))
    assert await later == (Value("b"), Origin.MADE)


async def test_a_caller_that_comes_during_the_cancellation_starts_the_work_again(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    first = start_get(cache, work)
    await let_tasks_run()
    first.cancel()
    await asyncio.sleep(0)  # the caller is cancelled, but its work is not yet
    second = start_get(cache, work)
    await let_tasks_run()
    work.results.put_nowait(Value("b"))
    assert await second == (Value("b"), Origin.MADE)


async def test_work_that_ignores_its_cancellation_is_not_cached() -> None:
    cache: Any = AsyncSingleFlightCache(10)
    release = asyncio.Event()

    async def ignore_cancellation() -> Value:
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
        return Value("stale")

    first = start_get(cache, ignore_cancellation)
    await let_tasks_run()
    first.cancel()
    await let_tasks_run()
    work = Work()
    second = start_get(cache, work)
    await let_tasks_run()
    release.set()
    await let_tasks_run()
    assert not second.done()
    work.results.put_nowait(Value("fresh"))
    assert await second == (Value("fresh"), Origin.MADE)
    assert (await cache.get("key", work))[0] == Value("fresh")


async def test_a_failure_is_raised_to_all_callers_and_is_not_cached(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    asked = [start_get(cache, work) for _ in range(5)]
    await let_tasks_run()
    work.results.put_nowait(ValueError("broken"))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["broken"] * 5
    later = start_get(cache, work)
    await let_tasks_run()
    work.results.put_nowait(Value("a"))
    assert await later == (Value("a"), Origin.MADE)


async def test_work_that_cancels_itself_is_a_failure(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    asked = start_get(cache, work)
    await let_tasks_run()
    work.results.put_nowait(asyncio.CancelledError())
    with pytest.raises(MaterialisationFailed):
        await asked


async def test_a_failure_without_callers_is_not_reported_as_lost(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    lost: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))

    async def fails_when_cancelled() -> Value:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("on the way out")

    asked = start_get(cache, fails_when_cancelled)
    await let_tasks_run()
    asked.cancel()
    await let_tasks_run()
    gc.collect()
    await let_tasks_run()
    assert lost == []


async def test_the_least_recently_used_value_is_removed_first(work: Work) -> None:
    cache: Any = AsyncSingleFlightCache(10)
    for name, size in (("a", 4), ("b", 4)):
        work.results.put_nowait(Value(name, size))
        await cache.get(name, work)
    assert (await cache.get("a", work))[1] is Origin.KEPT
    work.results.put_nowait(Value("c", 4))
    await cache.get("c", work)
    assert cache.nbytes == 8
    assert (await cache.get("a", work))[1] is Origin.KEPT
    work.results.put_nowait(Value("b", 4))
    assert (await cache.get("b", work))[1] is Origin.MADE


@pytest.mark.parametrize("most", [0, 3])
async def test_a_value_that_is_too_large_is_returned_and_not_cached(work: Work, most: int) -> None:
    cache: Any = AsyncSingleFlightCache(most)
    for _ in range(2):
        work.results.put_nowait(Value("large", 4))
        assert await cache.get("key", work) == (Value("large", 4), Origin.MADE)
    assert cache.nbytes == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "cancel", "finish", "fail", "settle"]), st.integers(0, 5)), max_size=40
)


@given(STEPS)
def test_in_any_order_each_caller_gets_its_value_an_error_or_its_own_cancellation(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        cache: Any = AsyncSingleFlightCache(4)
        works: list[tuple[int, Work]] = []
        asked: list[tuple[int, asyncio.Task[Any]]] = []
        cancelled = set()
        for step, number in steps:
            key = number % 3
            if step == "ask":
                work = Work()
                works.append((key, work))
                asked.append((key, start_get(cache, work, str(key))))
            elif step == "cancel" and asked:
                task = asked[number % len(asked)][1]
                if task.cancel():
                    cancelled.add(task)
            elif step in ("finish", "fail") and works:
                of, work = works[number % len(works)]
                work.results.put_nowait(Value(str(of), 2) if step == "finish" else KeyError(of))
            else:
                await asyncio.sleep(0)
            assert cache.nbytes <= 4
        await let_tasks_run()
        for of, work in works:
            work.results.put_nowait(Value(str(of), 2))
        await asyncio.gather(*(task for _, task in asked), return_exceptions=True)
        for key, task in asked:
            if task.cancelled():
                assert task in cancelled
            elif task.exception() is not None:
                assert repr(task.exception()) == repr(KeyError(key))
            else:
                assert task.result()[0] == Value(str(key), 2)
        assert cache._running == {}
        assert cache.nbytes == sum(value.nbytes for value in cache._entries.values()) <= 4

    asyncio.run(play())
