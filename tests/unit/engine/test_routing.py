"""Which engine gets a request: by load, by health, and by session if affinity is on."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.engine.routing import Replica, Router

URLS = ("http://a", "http://b", "http://c")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def router(clock: Clock) -> Router:
    return Router(URLS, clock=clock)


def eject(router: Router, engine: Replica) -> None:
    while not engine.is_unavailable:
        router.record_failure(engine)


def test_the_same_root_twice_is_one_engine() -> None:
    assert [engine.url for engine in Router(("http://a/", "http://a")).replicas] == ["http://a"]


def test_the_least_loaded_engine_is_chosen(router: Router) -> None:
    a, b, c = router.replicas
    a.in_flight, b.in_flight, c.in_flight = 2, 1, 3
    assert router.choose(session_id="s") is b


def test_idle_engines_take_turns(router: Router) -> None:
    chosen = Counter[str]()
    for _ in range(30):
        engine = router.choose(session_id="s")
        chosen[engine.url] += 1
        router.record_answer(engine)
    assert set(chosen.values()) == {10}


def test_a_retry_goes_to_another_engine_if_there_is_one(router: Router) -> None:
    a, b, c = router.replicas
    assert router.choose(session_id="s", avoid=[a, b]) is c
    assert router.choose(session_id="s", avoid=[a, b, c]) in (a, b, c)


def test_failures_in_a_row_eject_an_engine_and_an_answer_resets_their_count(router: Router) -> None:
    a, *_ = router.replicas
    for _ in range(2):
        router.record_failure(a)
        router.record_failure(a)
        router.record_answer(a)
    assert not a.is_unavailable
    eject(router, a)
    assert all(router.choose(session_id=str(number)) is not a for number in range(20))


def test_an_ejected_engine_is_offered_to_one_caller_when_its_time_is_over(router: Router, clock: Clock) -> None:
    a, *_ = router.replicas
    eject(router, a)
    clock.now += 1.1
    assert router.choose(session_id="s") is a
    assert a.is_unavailable
    assert router.choose(session_id="s") is not a
    router.mark_available(a)
    assert not a.is_unavailable
    assert router.choose(session_id="s") is a


def test_each_ejection_is_longer_up_to_a_maximum(router: Router, clock: Clock) -> None:
    a, *_ = router.replicas
    eject(router, a)
    waits = []
    for _ in range(8):
        began = clock.now
        while router.choose(session_id="s") is not a:
            clock.now += 0.5
        waits.append(clock.now - began)
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert set(waits[6:]) == {30.0}


def test_an_engine_that_is_ejected_for_days_is_still_offered(router: Router, clock: Clock) -> None:
    a, *_ = router.replicas
    eject(router, a)
    for _ in range(5000):
        clock.now += 31
        assert router.choose(session_id="s") is a
    assert a.unavailable_until == clock.now + 30


def test_if_all_engines_are_ejected_the_first_to_return_is_tried(router: Router, clock: Clock) -> None:
    for engine in reversed(router.replicas):
        eject(router, engine)
        clock.now += 0.1
    assert router.choose(session_id="s") is router.replicas[-1]


@pytest.fixture
def sessions() -> list[str]:
    return [f"rollout-{number}" for number in range(300)]


def test_affinity_moves_only_the_sessions_of_an_ejected_engine(sessions: list[str]) -> None:
    router = Router(URLS, affinity=True)
    before = {session: router.choose(session_id=session) for session in sessions}
    assert {session: router.choose(session_id=session) for session in sessions} == before
    assert min(Counter(before.values()).values()) > 60
    ejected = router.replicas[0]
    eject(router, ejected)
    after = {session: router.choose(session_id=session) for session in sessions}
    assert all(after[session] is engine for session, engine in before.items() if engine is not ejected)
    assert ejected not in after.values()


def test_affinity_does_not_overload_one_engine() -> None:
    router = Router(URLS, affinity=True)
    for _ in range(90):
        router.choose(session_id="the same").in_flight += 1
    assert max(engine.in_flight for engine in router.replicas) <= 1 + 1.25 * 90 / 3 + 1


@given(st.lists(st.sampled_from(["choose", "failed", "answered", "later"]), max_size=60), st.booleans())
def test_there_is_always_an_engine(events: list[str], affinity: bool) -> None:
    clock = Clock()
    router = Router(URLS, affinity=affinity, clock=clock)
    engines: Iterator[Replica] = iter(router.replicas * 60)
    for event in events:
        match event:
            case "choose":
                assert router.choose(session_id="s") in router.replicas
            case "failed":
                router.record_failure(next(engines))
            case "answered":
                router.record_answer(next(engines))
            case _:
                clock.now += 0.7
    assert router.choose(session_id="s") in router.replicas


def test_a_paused_engine_gets_no_request_for_a_short_time(router: Router, clock: Clock) -> None:
    paused, *running = router.replicas
    router.mark_paused(paused)
    assert {router.choose(session_id="s") for _ in range(9)} <= set(running)
    assert not router.all_are_paused()
    clock.now += 2.0
    assert router.choose(session_id="s") is paused


def test_paused_engines_are_chosen_if_all_are_paused(router: Router) -> None:
    for engine in router.replicas:
        router.mark_paused(engine)
    assert router.all_are_paused()
    assert router.choose(session_id="s") in router.replicas


def test_a_paused_engine_is_chosen_before_one_that_failed_this_request(router: Router) -> None:
    paused, failed, ejected = router.replicas
    router.mark_paused(paused)
    eject(router, ejected)
    assert router.choose(session_id="s", avoid=[failed]) is paused
    assert router.all_are_paused(avoid=[failed])
    assert not router.all_are_paused()
