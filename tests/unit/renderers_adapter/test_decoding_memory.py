"""The limit on decoding memory: it is never exceeded, and waiters are served in order until they give up."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from renderers_adapter import decoding_memory
from renderers_adapter.decoding_memory import DecodingMemory, DecodingMemoryError

DEADLINE = 10.0


def waiting(memory: DecodingMemory) -> list[int]:
    return [n_bytes for n_bytes, _ in memory._waiting]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - a thread makes it true
            await asyncio.sleep(0.001)


async def test_small_images_that_come_later_wait_for_a_large_one() -> None:
    memory, order = DecodingMemory(10), []
    release = asyncio.Event()

    async def decode(name: str, n_bytes: int) -> None:
        async with memory.hold_async(n_bytes):
            order.append(name)
            if name == "first":
                await release.wait()

    tasks = [asyncio.create_task(decode(*one)) for one in [("first", 6), ("large", 8), ("small", 1), ("last", 1)]]
    await until(lambda: order == ["first"] and len(waiting(memory)) == 3)
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "large", "small", "last"]


async def test_a_cancelled_waiter_leaves_the_queue_and_the_next_one_goes_on() -> None:
    memory = DecodingMemory(10)

    async def decode(n_bytes: int) -> None:
        async with memory.hold_async(n_bytes):
            pass

    with memory.hold(6):
        large = asyncio.create_task(decode(8))
        small = asyncio.create_task(decode(1))
        await until(lambda: waiting(memory) == [8, 1])
        large.cancel()
        async with asyncio.timeout(DEADLINE):
            await small
        assert waiting(memory) == []
    async with asyncio.timeout(DEADLINE), memory.hold_async(10):
        pass


async def test_a_thread_stops_waiting_at_its_stop_signal() -> None:
    memory, stop = DecodingMemory(10), Future[None]()

    def decode() -> None:
        with memory.hold(5, stop):
            pass

    with memory.hold(6):
        task = asyncio.create_task(asyncio.to_thread(decode))
        await until(lambda: waiting(memory) == [5])
        stop.set_result(None)
        with pytest.raises(DecodingMemoryError):
            async with asyncio.timeout(DEADLINE):
                await task
        assert waiting(memory) == []


def test_a_wait_ends_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_memory, "_LONGEST_WAIT", 0.01)
    memory = DecodingMemory(10)
    with memory.hold(6), pytest.raises(DecodingMemoryError, match=r"5 bytes .* may use 10"), memory.hold(5):
        pass
    with memory.hold(10):
        pass


def test_many_threads_together_never_exceed_the_limit() -> None:
    memory, lock, held, most = DecodingMemory(10), threading.Lock(), 0, 0

    def decode(n_bytes: int) -> None:
        nonlocal held, most
        with suppress(ZeroDivisionError), memory.hold(n_bytes):
            with lock:
                held += n_bytes
                most = max(most, held)
            with lock:
                held -= n_bytes
            raise ZeroDivisionError  # memory is freed after an error, too

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [1, 7, 3, 10, 2, 5] * 50, timeout=DEADLINE))
    assert 0 < most <= 10
    with memory.hold(10):
        pass


def test_a_request_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="11 bytes are more than the limit of 10"), DecodingMemory(10).hold(11):
        pass
