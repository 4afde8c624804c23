"""Which failures are tried again, which are final, and how long a call takes at most."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from rollout import Retry
from rollout.errors import RolloutError
from rollout.judge import Judge, JudgeRefused
from rollout.judge.client import _MAX_RETRY_AFTER_SECONDS
from rollout.judge.http import MAX_ANSWER_BYTES
from tests.unit.judge.stand_in import always, hang, in_turn, respond, serve_judge, verdict


def answer_in_parts(*parts: dict[str, Any]) -> bytes:
    choice = {"message": {"content": parts}, "finish_reason": "stop"}
    return respond(200, orjson.dumps({"choices": [choice]}))


WITHOUT_ANSWER = {
    **{f"{status}": respond(status, b"no") for status in (408, 429, 500, 502, 503, 504, 529)},
    "closed": None,
    "no HTTP": b"nonsense\r\n\r\n",
    "half an answer": respond(200, b"{}", connection="close")[:-1],
    "no JSON": respond(200, b"<html>"),
    "half of JSON": respond(200, b'{"choices": ['),
    "another JSON": respond(200, b"[]"),
    "an error": respond(200, b'{"error": {"message": "no"}}'),
    "no choices": respond(200, b'{"choices": []}'),
    "choices that are none": respond(200, b'{"choices": {"a": 1}}'),
    "no message": respond(200, b'{"choices": [{"finish_reason": "stop"}]}'),
    "parts": respond(200, b'{"choices": [{"message": {"content": [1]}, "finish_reason": "stop"}]}'),
    "empty": verdict(""),
    "blank": verdict(" \n"),
    "none": verdict(None),
    "filtered": verdict("half", "content_filter"),
    "filtered before": verdict(None, "content_filter"),
    "cut": verdict("half", "length"),
    "tools": verdict("half", "tool_calls"),
    "function": verdict("half", "function_call"),
    "aborted": verdict("half", "abort"),
    "broken": verdict("half", "error"),
    "cut elsewhere": verdict("half", "max_tokens"),
    "no text in parts": answer_in_parts({"type": "thinking", "thinking": "well"}),
    "no parts": answer_in_parts(),
    "too large": verdict("x" * MAX_ANSWER_BYTES),
    "compressed": verdict("yes").replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1),
}


@pytest.mark.parametrize("name", WITHOUT_ANSWER)
async def test_a_try_without_an_answer_is_repeated(name: str) -> None:
    async with serve_judge(in_turn(WITHOUT_ANSWER[name], verdict("yes"))) as server, Judge(server.url, "m") as judge:
        async with asyncio.timeout(30):
            assert await judge.ask("well?") == "yes"
    assert server.targets == ["POST /v1/chat/completions"] * 2


@pytest.mark.parametrize("name", WITHOUT_ANSWER)
async def test_after_the_last_try_a_retry_says_where_and_how_often(name: str) -> None:
    async with serve_judge(always(WITHOUT_ANSWER[name])) as server:
        async with Judge(server.url, "m", max_tries=3) as judge:
            with pytest.raises(Retry, match=f"^the judge at {server.url} gave no answer as 'm' in 3 tries: ."):
                await judge.ask("well?")
    assert len(server.questions) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422])
async def test_a_refusal_is_final_and_is_not_a_retry(status: int) -> None:
    body = orjson.dumps({"error": {"message": "a reason"}})
    async with serve_judge(always(respond(status, body))) as server, Judge(server.url, "m") as judge:
        with pytest.raises(JudgeRefused, match=f"^the judge at {server.url} answered {status}: a reason") as refused:
            await judge.ask("well?")
    assert not isinstance(refused.value, Retry)
    assert isinstance(refused.value, RolloutError)
    assert not refused.value.infrastructure
    assert len(server.questions) == 1


@pytest.mark.parametrize(
    ("status", "fix"),
    [(400, "are the sampling"), (401, "is api_key"), (403, "may this api_key"), (404, "has base_url the /v1")],
)
async def test_a_refusal_says_what_to_check(status: int, fix: str) -> None:
    async with serve_judge(always(respond(status, b""))) as server, Judge(server.url, "m") as judge:
        with pytest.raises(JudgeRefused, match=rf"\(it gave no reason\) \({fix}"):
            await judge.ask("well?")


async def test_a_refusal_may_have_an_endless_reason() -> None:
    async with serve_judge(always(respond(401, b"x" * (MAX_ANSWER_BYTES + 1)))) as server:
        async with Judge(server.url, "m") as judge:
            with pytest.raises(JudgeRefused, match=r"answered 401: \(an answer that is compressed or too long"):
                await judge.ask("well?")


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_a_cut_answer_is_accepted_if_the_caller_set_a_limit(key: str) -> None:
    async with serve_judge(always(verdict("half", "length"))) as server, Judge(server.url, "m") as judge:
        limit: dict[str, Any] = {key: 1}
        assert await judge.ask("well?", **limit) == "half"
        limit = {key: None}
        with pytest.raises(Retry, match="was cut"):
            await judge.ask("well?", **limit)


@pytest.mark.parametrize("finish_reason", ["stop", "eos_token", "end_turn", "eos", "STOP", None])
async def test_an_answer_with_any_usual_finish_reason_is_accepted(finish_reason: str | None) -> None:
    async with serve_judge(always(verdict("yes", finish_reason))) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("well?") == "yes"


async def test_texts_in_parts_are_joined_without_other_parts() -> None:
    thought = {"type": "thinking", "thinking": "well", "text": "well"}
    response = answer_in_parts({"type": "text", "text": "1"}, thought, {"text": "0"}, {"type": "text", "text": None})
    async with serve_judge(always(response)) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("well?") == "10"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_refused_and_not_followed(status: int) -> None:
    redirect = respond(status, b"", location="https://elsewhere.example/v1")
    async with serve_judge(always(redirect)) as server, Judge(server.url, "m") as judge:
        with pytest.raises(
            JudgeRefused, match=rf"answered {status}: it redirects to https://elsewhere\.example/v1, and"
        ):
            await judge.ask("well?")
    assert len(server.questions) == 1


async def test_a_redirect_without_an_address_is_refused() -> None:
    async with serve_judge(always(respond(302, b"moved"))) as server, Judge(server.url, "m") as judge:
        with pytest.raises(JudgeRefused, match="it redirects to an address that it does not name"):
            await judge.ask("well?")


@pytest.mark.parametrize(
    "location",
    [
        "https://u:hunter2@h.example/v1",
        "https://hunter2@h.example/v1",
        "//u:hunter2@h.example/v1",
        "https://h.example/v1?login=hunter2",
        "https://h.example/v1#hunter2",
        "https://h.example/hunter2/1",
        "https://h.example/hunter2%2f1",
        "https://h.example/hunter2%2F1",
    ],
)
async def test_a_redirect_shows_no_secrets(location: str) -> None:
    async with serve_judge(always(respond(302, b"", location=location))) as server:
        async with Judge(server.url, "m", api_key="hunter2/1") as judge:
            with pytest.raises(JudgeRefused, match=r"h\.example/") as refused:
                await judge.ask("well?")
    assert "hunter2" not in str(refused.value)


async def test_each_try_has_its_deadline() -> None:
    async def behave(body: dict[str, Any]) -> bytes | None:
        return await (hang if len(server.questions) == 1 else always(verdict("yes")))(body)

    async with serve_judge(behave) as server, Judge(server.url, "m", timeout=0.2, max_tries=50) as judge:
        assert await judge.ask("well?") == "yes"


async def test_a_try_with_an_incomplete_answer_has_its_deadline_too() -> None:
    async with serve_judge(always(b"HTTP/1.1 200 -\r\n")) as server:
        async with Judge(server.url, "m", timeout=0.1, max_tries=1) as judge:
            with pytest.raises(Retry, match=r"in 1 try: a try took longer than 0\.1 s"):
                await judge.ask("well?")


async def test_a_wait_for_other_calls_ends() -> None:
    async with serve_judge(hang) as server:
        async with Judge(server.url, "m", timeout=0.1, max_tries=3, max_concurrent=1) as judge:
            asking = [asyncio.ensure_future(judge.ask(f"question {number}")) for number in range(8)]
            outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 30)
    assert all(isinstance(outcome, Retry) for outcome in outcomes)
    assert any(
        "in 0 tries: it waited too long for other calls (max_concurrent: 1)" in str(outcome) for outcome in outcomes
    )


async def test_no_more_questions_are_in_flight_than_allowed() -> None:
    async def behave(_: dict[str, Any]) -> bytes:
        await asyncio.sleep(0.01)
        return verdict("yes")

    async with serve_judge(behave) as server, Judge(server.url, "m", max_concurrent=3) as judge:
        await asyncio.gather(*(judge.ask(f"question {number}") for number in range(12)))
    assert server.most_busy == 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("3600", _MAX_RETRY_AFTER_SECONDS, _MAX_RETRY_AFTER_SECONDS),
        ("-1", 0, 0),
        ("nan", 0, 0),
        ("1e999", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        (format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True), 0, 0),
        (format_datetime(datetime(2999, 1, 1, tzinfo=UTC), usegmt=True), 30, 30),
    ],
)
async def test_the_judge_may_ask_for_a_pause_within_bounds(
    pauses: list[float], status: int, asked: str, least: float, most: float
) -> None:
    busy = respond(status, b"", retry_after=asked)
    async with serve_judge(in_turn(busy, verdict("yes"))) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("well?") == "yes"
    (pause,) = pauses
    assert least <= pause <= most


async def test_a_date_says_when_the_pause_ends(pauses: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    busy = respond(429, b"", retry_after=date)
    async with serve_judge(in_turn(busy, verdict("yes"))) as server, Judge(server.url, "m") as judge:
        await judge.ask("well?")
    assert 0 < pauses[0] <= 20


async def test_a_pause_longer_than_the_rest_of_the_call_does_not_start(pauses: list[float]) -> None:
    async with serve_judge(always(respond(429, b"busy", retry_after="20"))) as server:
        async with Judge(server.url, "m", timeout=1, max_tries=4) as judge:
            with pytest.raises(Retry, match="in 1 try: it answered 429: busy"):
                await judge.ask("well?")
    assert pauses == []


async def test_pauses_grow_and_differ(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.judge.client._FIRST_PAUSE_SECONDS", 0.25)
    async with serve_judge(always(respond(500, b""))) as server, Judge(server.url, "m", max_tries=9) as judge:
        with pytest.raises(Retry):
            await judge.ask("well?")
    assert len(pauses) == 8
    for pause, longest in zip(pauses, (0.25, 0.5, 1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= pause <= longest
