"""The URL and the key of a judge: wrong ones are refused at once, and secrets are never shown."""

import base64
import logging
import re
import socket
from contextlib import closing
from typing import Any
from urllib.parse import quote, quote_plus

import orjson
import pytest
import structlog

from rollout import Retry
from rollout.errors import ConfigurationError
from rollout.judge import Judge, JudgeRefused
from tests.unit.judge.stand_in import always, in_turn, respond, serve_judge, verdict

KEY = 'sk-t/o"p\\secret'
PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "base_url",
    [
        "http://[bad/v1",
        "http://h:port/v1",
        "http://h:99999/v1",
        "h/v1",
        "localhost:8000/v1",
        "//h/v1",
        "",
        "ftp://h/v1",
        "http:///v1",
        "http://:8000/v1",
        "http://a b/v1",
        "http://h\ud800/v1",
        "http://h/v1?key=1",
        "http://h/v1#x",
        "http://h/v1/chat/completions",
        "http://h/v1/chat/completions/",
        None,
    ],
    ids=ascii,
)
def test_an_invalid_url_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="Judge: base_url "):
        Judge(base_url, "m")


@pytest.mark.parametrize(
    "base_url",
    [
        "http://u:hunter2@[bad/v1",
        "http://u:hunter2@h:port/v1",
        "http://u:hun/hunter2@h/v1",
        "http://u:hunter2@a b/v1",
        "http://u:hunter2@h/v1?x=1",
        "http://h/v1?password=hunter2",
        "http://h/v1#hunter2",
        "http://u:hunter2@h/v1/chat/completions",
        "ftp://u:hunter2@h/v1",
        "ftp://hunter2@h/v1",
        "u:hunter2@h/v1",
    ],
)
def test_a_refused_url_does_not_show_its_password(base_url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Judge(base_url, "m")
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("ending", ["", "/", "//", "\n"], ids=ascii)
async def test_only_the_route_is_added_to_the_url(ending: str) -> None:
    async with serve_judge(always(verdict("yes"))) as server, Judge(server.url + ending, "m") as judge:
        await judge.ask("well?")
    assert server.targets == ["POST /v1/chat/completions"]
    assert server.headers[0]["accept-encoding"] == "identity"


async def test_a_user_and_a_password_are_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve_judge(always(respond(500, b"I know u:hunter2"))) as server:
        url = server.url.replace("://", "://u:hun%74er2@")
        async with Judge(url, "m", max_tries=2) as judge:
            with structlog.testing.capture_logs() as logs, pytest.raises(Retry) as retry:
                await judge.ask("well?")
        assert server.headers[0]["authorization"] == f"Basic {base64.b64encode(b'u:hunter2').decode()}"
    shown = f"{retry.value} {logs} {caplog.text} {judge!r}"
    assert server.url in shown
    assert PASSWORD not in shown
    assert "hun%74er2" not in shown
    assert base64.b64encode(b"u:hunter2").decode() not in shown


def test_a_user_in_the_url_and_a_key_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match="Only one of them") as refused:
        Judge("http://u:hunter2@h/v1", "m", api_key=KEY)
    assert PASSWORD not in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("space", ["{}\n", " {}", "\t{}\r\n"], ids=ascii)
async def test_a_key_is_sent_without_the_white_space_around_it_and_not_logged(
    space: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve_judge(always(verdict("yes"))) as server:
        async with Judge(server.url, "m", api_key=space.format(KEY)) as judge:
            await judge.ask("well?")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "sk-" not in caplog.text


@pytest.mark.parametrize(
    "key", ["sk-\u00e9tude", "sk-one\nsk-two", "sk-\u200bzero", "sk-\ud800", b"sk-bytes"], ids=ascii
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        Judge("http://h/v1", "m", api_key=key)
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("key", ["", " \n"], ids=ascii)
def test_an_empty_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key is empty"):
        Judge("http://h/v1", "m", api_key=key)


@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode(),
        lambda text: orjson.dumps({"error": {"message": text}}),
        lambda text: orjson.dumps({"detail": text}),
        lambda text: orjson.dumps({"detail": text}).replace(b"/", b"\\/"),
        lambda text: quote(text, safe="").encode(),
        lambda text: quote(text).encode(),
        lambda text: quote_plus(text).encode(),
        lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")).encode(),
    ],
    ids=["text", "error", "detail", "slashes", "url", "path", "form", "lower case"],
)
async def test_a_key_that_the_judge_repeats_is_not_quoted(write: object, status: int) -> None:
    assert callable(write)
    # At every place around the end of the excerpt, where a part of the key could be left.
    bodies = [write(f"{'x' * fill} wrong key {KEY} {KEY}") for fill in (0, *range(470, 500))]
    async with serve_judge(in_turn(*(respond(status, body) for body in bodies))) as server:
        async with Judge(server.url, "m", api_key=KEY, max_tries=1) as judge:
            for number in range(len(bodies)):
                with pytest.raises((Retry, JudgeRefused)) as failed:
                    await judge.ask(f"question {number}")
                assert "sk-" not in str(failed.value)


async def test_a_key_of_several_words_is_not_quoted_with_other_white_space() -> None:
    bodies = [f"{'x' * fill} sk-one\nsk-two".encode() for fill in range(480, 500)]
    async with serve_judge(in_turn(*(respond(500, body) for body in bodies))) as server:
        async with Judge(server.url, "m", api_key="sk-one sk-two", max_tries=1) as judge:
            for number in range(len(bodies)):
                with pytest.raises(Retry) as failed:
                    await judge.ask(f"question {number}")
                assert "sk-" not in str(failed.value)


async def test_a_key_in_a_broken_answer_is_not_quoted() -> None:
    async with serve_judge(always(f"{KEY} nonsense\r\n\r\n".encode())) as server:
        async with Judge(server.url, "m", api_key=KEY, max_tries=1) as judge:
            with pytest.raises(Retry) as failed:
                await judge.ask("well?")
    assert "sk-" not in str(failed.value)
    assert failed.value.__cause__ is failed.value.__context__ is None


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serve_judge(always(verdict("yes"))) as server, Judge(server.url, "m") as judge:
        assert await judge.ask("well?") == "yes"


async def test_the_error_of_a_judge_that_does_not_run_has_its_url() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with Judge(url, "m", max_tries=2) as judge:
            with pytest.raises(Retry, match=f"the judge at {url} gave no answer from 'm' in 2 tries: ConnectError"):
                await judge.ask("well?")


async def test_the_error_of_an_invalid_host_has_its_url() -> None:
    async with Judge("http://a..b/v1", "m", max_tries=1) as judge:
        with pytest.raises(Retry, match=r"the judge at http://a\.\.b/v1 gave no answer"):
            await judge.ask("well?")


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 10**400},
        {"timeout": "5"},
        {"timeout": None},
        {"timeout": True},
        {"max_tries": 0},
        {"max_tries": "3"},
        {"max_tries": 1.5},
        {"max_tries": True},
        {"max_concurrent": 0},
        {"max_concurrent": 2.5},
        {"cache_size": -1},
        {"cache_size": 1.5},
        {"cache_size": None},
    ],
    ids=lambda wrong: f"{wrong!s:.30}",
)
def test_an_invalid_number_is_refused_by_name(wrong: dict[str, Any]) -> None:
    ((name, found),) = wrong.items()
    shown = re.escape(repr(found)[:90])
    with pytest.raises(ConfigurationError, match=rf"^Judge: {name} is {shown}[0.]*; expected a .* number of "):
        Judge("http://h/v1", "m", **wrong)


async def test_the_longest_finite_timeout_is_accepted() -> None:
    async with serve_judge(always(verdict("yes"))) as server, Judge(server.url, "m", timeout=10**308) as judge:
        assert await judge.ask("well?") == "yes"


@pytest.mark.parametrize("model", [None, "", " ", 5], ids=ascii)
def test_a_model_without_a_name_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^Judge: model is {model!r}; expected a string, the name"):
        Judge("http://h/v1", model)
