"""Which engines are used after a push, and what happens to answers of other weights."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from rollout.engine.errors import EngineAborted, EngineUnavailable
from rollout.engine.request import GenerateRequest
from rollout.engine.routing import Router
from tests.unit.engine.faulty import FaultyEngine, client_of, completed, succeed


@pytest.fixture
def sampled_by() -> Callable[..., Callable[[Any], Awaitable[Any]]]:
    """`sampled_by("7", "8")`: answers sampled by these versions, one after another; the last one repeats."""

    def make_behaviour(*versions: str, finish: str = "stop") -> Callable[[Any], Awaitable[Any]]:
        remaining_versions = list(versions)

        async def behave(body: dict[str, Any]) -> Any:
            version = remaining_versions.pop(0) if len(remaining_versions) > 1 else remaining_versions[0]
            ended = finish if len(remaining_versions) > 1 or version != versions[-1] else "stop"
            spans = [{"version": version, "start": 0, "end": 3}]
            return completed(body, weight_versions=spans, finish_reason=ended)

        return behave

    return make_behaviour


async def test_an_engine_that_missed_the_push_is_not_used_until_it_reports_the_version(
    sampled_by: Any, text: GenerateRequest
) -> None:
    behind, healthy = FaultyEngine(sampled_by("7")), FaultyEngine(sampled_by("8"))
    behind.weights, healthy.weights = "7", "8"
    async with client_of(behind, healthy) as client:
        for number in range(4):
            await client.generate(replace(text, request_id=f"before-{number}", required_version="7"))
        used = len(behind.generated)
        for number in range(8):
            answer = await client.generate(replace(text, request_id=f"r-{number}", required_version="8"))
            assert [span.version for span in answer.versions] == ["8"]
        assert len(behind.generated) == used > 0

        behind.weights, behind.behave = "8", sampled_by("8")
        for engine in client.replicas:
            engine.unavailable_until = 0.0 if engine.is_unavailable else None  # the ejection is over
        for number in range(8):
            await client.generate(replace(text, request_id=f"later-{number}", required_version="8"))
        assert len(behind.generated) > used


async def test_a_turn_fails_and_says_why_if_every_engine_is_behind(sampled_by: Any, text: GenerateRequest) -> None:
    engine = FaultyEngine(sampled_by("default"))
    engine.weights = "default"
    async with client_of(engine, retries=2) as client:
        with pytest.raises(EngineUnavailable, match="has the weights 'default', but the trainer has pushed '8'"):
            await client.generate(replace(text, required_version="8"))
    assert engine.generated == []


async def test_an_engine_that_reports_no_version_is_not_used_if_one_is_required(text: GenerateRequest) -> None:
    engine = FaultyEngine(succeed)
    async with client_of(engine, retries=0) as client:
        with pytest.raises(EngineUnavailable, match="VLLM_SERVER_DEV_MODE=1"):
            await client.generate(replace(text, required_version="0"))
        await client.generate(text)


async def test_an_answer_of_older_weights_is_dropped_and_its_engine_is_no_longer_used(
    sampled_by: Any, text: GenerateRequest
) -> None:
    """The server was killed and restarted unnoticed: only the versions in its answer show it."""
    engine, other = FaultyEngine(sampled_by("8", "default")), FaultyEngine(sampled_by("8"))
    engine.weights = other.weights = "8"
    async with client_of(engine) as alone:
        await alone.generate(replace(text, required_version="8"))
        engine.weights = "default"
        with pytest.raises(EngineUnavailable, match="default"):
            await alone.generate(replace(text, request_id="again", required_version="8"))
    requests_before = len(engine.generated)
    engine.weights = "8"  # what it reported before it was killed
    async with client_of(engine, other) as client:
        for number in range(6):
            answer = await client.generate(replace(text, request_id=f"r-{number}", required_version="8"))
            assert [span.version for span in answer.versions] == ["8"]
    assert len(engine.generated) == requests_before + 1


async def test_tokens_of_newer_weights_than_required_are_accepted(sampled_by: Any, text: GenerateRequest) -> None:
    """An engine can have new weights before the workers learn of them."""
    engine = FaultyEngine(sampled_by("9"))
    engine.weights = "9"
    async with client_of(engine) as client:
        answer = await client.generate(replace(text, required_version="8"))
    assert [span.version for span in answer.versions] == ["9"]


async def test_a_turn_that_was_aborted_for_new_weights_starts_again(sampled_by: Any, text: GenerateRequest) -> None:
    engine = FaultyEngine(sampled_by("7", "8", finish="abort"))
    async with client_of(engine) as client:
        answer = await client.generate(text)
        assert [e.consecutive_failures for e in client.replicas] == [0]
    assert [span.version for span in answer.versions] == ["8"]
    assert [body["request_id"] for body in engine.generated] == ["r-0.0", "r-0.1"]


async def test_a_turn_that_is_aborted_every_time_fails(text: GenerateRequest) -> None:
    async def aborting(body: dict[str, Any]) -> Any:
        return completed(body, finish_reason="abort")

    engine = FaultyEngine(aborting)
    async with client_of(engine, retries=2) as client:
        with pytest.raises(EngineAborted):
            await client.generate(text)
    assert len(engine.generated) == 3


async def test_a_required_version_is_the_salt_of_the_prefix_cache(sampled_by: Any, text: GenerateRequest) -> None:
    engine = FaultyEngine(sampled_by("8"))
    engine.weights = "8"
    async with client_of(engine) as client:
        await client.generate(text)
        await client.generate(replace(text, request_id="r-1", required_version="8"))
    assert [body.get("cache_salt") for body in engine.generated] == [None, "8"]


def test_a_trainer_may_require_an_older_version_again() -> None:
    router = Router(["http://a", "http://b"], clock=lambda: 100.0)
    a, b = router.replicas
    a.version, b.version = "18", "10"
    router.require_version("18")
    assert (a.is_unavailable, b.is_unavailable) == (False, True)
    router.require_version("10")
    assert {router.choose(session_id="s") for _ in range(3)} == {a, b}
    router.mark_available(b)
    assert not b.is_unavailable


def test_an_answer_does_not_bring_back_an_engine_that_is_behind() -> None:
    router = Router(["http://a"], clock=lambda: 100.0)
    (engine,) = router.replicas
    engine.version = "7"
    router.require_version("8")
    router.record_answer(engine)
    assert engine.is_unavailable
    engine.version = "8"
    router.record_answer(engine)
    assert not engine.is_unavailable
