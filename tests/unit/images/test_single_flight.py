"""The cache that threads share: one computation for each key, a bounded size, and errors for all waiters."""

import threading

import pytest

from rollout.images.single_flight import SingleFlightCache


def test_many_threads_that_miss_at_once_share_one_computation() -> None:
    cache = SingleFlightCache[bytes](100, len)
    everyone_waits = threading.Barrier(8)
    computed: list[int] = []
    results: list[bytes] = []

    def compute() -> bytes:
        computed.append(1)
        return b"value"

    def ask() -> None:
        everyone_waits.wait(10)
        results.append(cache.get("key", compute))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [b"value"] * 8
    assert len(computed) == 1


def test_every_waiter_gets_the_error_and_the_next_caller_tries_again() -> None:
    cache = SingleFlightCache[bytes](100, len)
    started, go_on = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def fail() -> bytes:
        started.set()
        go_on.wait(10)
        raise ValueError("broken")

    def ask() -> None:
        try:
            cache.get("key", fail)
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 2
    assert cache.get("key", lambda: b"fixed") == b"fixed"


def test_the_least_recently_used_values_are_removed_first() -> None:
    cache = SingleFlightCache[bytes](10, len)
    for key in "ab":
        cache.get(key, lambda: b"12345")
    cache.get("a", lambda: pytest.fail("still there"))
    cache.get("c", lambda: b"12345")
    cache.get("a", lambda: pytest.fail("still there"))
    assert cache.get("b", lambda: b"again") == b"again"


def test_a_value_larger_than_the_cache_is_not_kept() -> None:
    cache = SingleFlightCache[bytes](3, len)
    cache.get("a", lambda: b"1234")
    assert cache.get("a", lambda: b"12") == b"12"
