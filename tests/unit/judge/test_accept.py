"""A caller accepts or refuses answers: a refused answer is not cached, and the judge is asked again."""

import asyncio
from typing import Any

import pytest

from rollout import Retry
from rollout.judge import Judge, JudgeRefused
from tests.unit.judge.stand_in import always, in_turn, respond, serve_judge, verdict


def refuse(_: str) -> bool:
    return False


async def test_a_refused_answer_is_not_cached_and_the_judge_is_asked_again() -> None:
    async with serve_judge(in_turn(verdict("good"), verdict("7"))) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("well?", accept=str.isdigit, temperature=0) == "7"
        assert await judge.ask("well?", temperature=0) == "7"
    assert len(server.questions) == 2
    assert server.questions[0].keys() == {"model", "messages", "temperature"}


@pytest.mark.parametrize("max_tries", [1, 3])
async def test_after_the_last_refused_answer_a_retry_quotes_it(max_tries: int) -> None:
    async with serve_judge(always(verdict("good"))) as server, Judge(server.url, "m", max_tries=max_tries) as judge:
        tries = "1 try" if max_tries == 1 else "3 tries"
        with pytest.raises(Retry, match=f"gave no answer as 'm' in {tries}: accept refuses its answer 'good'$"):
            await judge.ask("well?", accept=str.isdigit)
        assert len(server.questions) == max_tries
        assert await judge.ask("well?") == "good"
    assert len(server.questions) == max_tries + 1, "the last answer was kept, too"


async def test_the_quotation_is_short_and_shows_no_secret() -> None:
    said = ["a" * fill + " sk-secret" for fill in range(80, 110)]
    async with serve_judge(in_turn(*(verdict(text) for text in said))) as server:
        async with Judge(server.url, "m", api_key="sk-secret", max_tries=1) as judge:
            for number in range(len(said)):
                with pytest.raises(Retry) as failed:
                    await judge.ask(f"question {number}", accept=refuse)
                assert "sk-" not in str(failed.value)
                assert len(str(failed.value)) < 250


async def test_a_cached_answer_that_is_refused_is_removed_and_costs_no_try() -> None:
    responses = in_turn(verdict("good"), verdict("7"))
    async with serve_judge(responses) as server, Judge(server.url, "m", max_tries=1) as judge:
        assert await judge.ask("well?") == "good"
        assert await judge.ask("well?", accept=str.isdigit) == "7"
        assert await judge.ask("well?") == "7"
    assert len(server.questions) == 2


async def test_failed_tries_and_refused_answers_count_together() -> None:
    responses = in_turn(respond(500, b"no"), verdict("good"), respond(500, b"no"))
    async with serve_judge(responses) as server, Judge(server.url, "m", max_tries=3) as judge:
        with pytest.raises(Retry, match="in 3 tries: it answered 500: no"):
            await judge.ask("well?", accept=refuse)
    assert len(server.questions) == 3


async def test_refused_answers_have_the_same_pauses(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.judge.client._FIRST_PAUSE_SECONDS", 0.25)
    async with serve_judge(always(verdict("good"))) as server, Judge(server.url, "m", max_tries=4) as judge:
        with pytest.raises(Retry):
            await judge.ask("well?", accept=refuse)
    assert len(pauses) == 3
    for pause, longest in zip(pauses, (0.25, 0.5, 1), strict=True):
        assert longest / 2 <= pause <= longest


async def test_a_pause_longer_than_the_rest_of_the_call_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.judge.client._FIRST_PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr("rollout.judge.client._MAX_PAUSE_SECONDS", 1000.0)
    async with serve_judge(always(verdict("good"))) as server, Judge(server.url, "m") as judge:
        async with asyncio.timeout(30):
            with pytest.raises(Retry, match="in 1 try: accept refuses"):
                await judge.ask("well?", accept=refuse)


@pytest.mark.parametrize("cache_size", [0, 10])
async def test_callers_with_different_accept_functions_share_a_call(cache_size: int) -> None:
    responses = in_turn(verdict("good"), verdict("7"))
    async with serve_judge(responses) as server, Judge(server.url, "m", cache_size=cache_size) as judge:
        answers = await asyncio.gather(
            judge.ask("well?"),
            judge.ask("well?", accept=str.isdigit),
            judge.ask("well?", accept=str.isalpha),
            judge.ask("well?", accept=str.isdigit),
        )
    assert list(answers) == ["good", "7", "good", "7"]
    assert len(server.questions) == 2


async def test_many_callers_that_refuse_the_same_answer_use_the_tries_of_one() -> None:
    async with serve_judge(always(verdict("good"))) as server, Judge(server.url, "m", max_tries=3) as judge:
        asking = (judge.ask("well?", accept=str.isdigit) for _ in range(50))
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, Retry) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 50
    assert len(server.questions) == 3


async def test_an_error_of_accept_is_raised_only_to_its_caller() -> None:
    def fail(_: str) -> bool:
        raise ZeroDivisionError

    async with serve_judge(always(verdict("good"))) as server, Judge(server.url, "m") as judge:
        asking = [judge.ask("well?", accept=fail), judge.ask("well?"), judge.ask("well?", accept=str.isalpha)]
        first, *others = await asyncio.gather(*asking, return_exceptions=True)
        assert await judge.ask("well?") == "good"
    assert isinstance(first, ZeroDivisionError)
    assert others == ["good", "good"]
    assert len(server.questions) == 1


async def accept_later(_: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("accept", "found"), [("7", "a str"), (accept_later, "a coroutine function")], ids=["text", "coroutine"]
)
async def test_accept_must_be_a_plain_function(accept: Any, found: str) -> None:
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=rf"^ask\(accept=…\) is {found}; expected a plain function"):
            await judge.ask("well?", accept=accept)
