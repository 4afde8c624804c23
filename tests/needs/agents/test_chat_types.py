"""What the dialect chat completions sends is what the openai SDK expects, and what the SDK sends back is an exact echo.

The SDK's classes are built leniently when the SDK reads an answer. So the tests validate the JSON against them.
"""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import orjson
import pytest
from openai.types import ErrorObject
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionAssistantMessageParam,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ParsedChatCompletion,
)
from pydantic import TypeAdapter

from renderers_adapter.rendered import ParsedCompletion, ParsedToolCall
from rollout.gateway.dialects.base import Answer, AnsweredCall, RefusalReason, RequestRefused, SampledToken, TurnRequest
from rollout.gateway.dialects.chat import ChatDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from rollout.session.replies import build_assistant_message
from tests.unit.gateway.dialects.chat_requests import (
    ADD,
    CALLS,
    PATCH,
    answer,
    body,
    choice,
    completion,
    streamed,
)

QUESTION: ChatCompletionMessageParam = {"role": "user", "content": "What is 1.5 + 2?"}
TOKENS = (SampledToken("3", -0.5), SampledToken(".5", -20_000.0))
ANSWERS = {
    "text": answer(choice("3.5")),
    "empty": answer(choice()),
    "cut": answer(choice("3.", finish_reason=FinishReason.LENGTH)),
    "calls": answer(choice(calls=CALLS)),
    "all": answer(choice("I add.", CALLS, reasoning="Two calls.\nSo both.", tokens=TOKENS)),
    "choices": answer(choice("3.5", tokens=TOKENS), choice(calls=CALLS, tokens=TOKENS), choice(reasoning="Hm.")),
    "limit": answer(choice("The rollout is over."), limit=RolloutLimit.TURNS),
}
FIELDS: dict[str, Any] = {"tools": [ADD], "logprobs": True, "n": 3}


class Gateway(httpx.BaseTransport):
    """Answers the SDK with what the dialect writes, without a network.

    Attributes:
        dialect: the dialect.
        requests: the requests that it read.
    """

    def __init__(self, write: Callable[[ChatDialect, TurnRequest], httpx.Response]) -> None:
        self.dialect = ChatDialect()
        self.requests: list[TurnRequest] = []
        self._write = write

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(self.dialect.read(request.read()))
        return self._write(self.dialect, self.requests[-1])

    def client(self) -> openai.OpenAI:
        """Return a client of the SDK that talks to this transport."""
        http_client: Any = httpx.Client(transport=self)  # the SDK's types name a fork of httpx, which it need not be
        return openai.OpenAI(api_key="key", base_url="http://gateway/v1", http_client=http_client, max_retries=0)


def answering(given: Answer) -> Gateway:
    """Return a gateway that gives this answer to every request."""

    def write(dialect: ChatDialect, request: TurnRequest) -> httpx.Response:
        if not request.streamed:
            return httpx.Response(
                200, headers={"content-type": "application/json"}, content=dialect.write_answer(request, given)
            )
        events = b": waiting\n\n" + b"".join(dialect.write_events(request, given))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=events)

    return Gateway(write)


def refusing(refusal: RequestRefused) -> Gateway:
    """Return a gateway that refuses every request, in its stream if the client wants one."""

    def write(dialect: ChatDialect, request: TurnRequest) -> httpx.Response:
        if not request.streamed:
            return httpx.Response(refusal.reason.status, content=dialect.write_refusal(refusal))
        events = b": waiting\n\n" + b"".join(dialect.write_failure_events(request, refusal))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=events)

    return Gateway(write)


def accumulate(gateway: Gateway) -> ParsedChatCompletion[None]:
    """Return what the SDK makes of a stream."""
    with gateway.client().chat.completions.stream(
        model="tiny", messages=[QUESTION], stream_options={"include_usage": True}, logprobs=True
    ) as stream:
        return stream.get_final_completion()


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("fields", [{}, FIELDS])
def test_an_answer_is_valid(name: str, fields: dict[str, Any]) -> None:
    written = completion(ANSWERS[name], **fields)
    assert ChatCompletion.model_validate(written, strict=True).to_dict() == written


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("fields", [{}, FIELDS | {"stream_options": {"include_usage": True}}])
def test_every_chunk_is_valid(name: str, fields: dict[str, Any]) -> None:
    for chunk in streamed(ANSWERS[name], **fields):
        assert ChatCompletionChunk.model_validate(chunk, strict=True).to_dict() == chunk


def test_an_answer_with_a_custom_call_is_valid() -> None:
    """Its chunks are not tested, because the SDK has no type for them."""
    given = answer(choice(calls=(AnsweredCall("call_p", "apply_patch", '{"input": "+x"}'), *CALLS)))
    written = completion(given, tools=[PATCH])
    parsed = ChatCompletion.model_validate(written, strict=True)
    assert [call.type for call in parsed.choices[0].message.tool_calls or ()] == ["custom", "function", "function"]


def test_the_sdk_finds_a_cut_answer_in_the_chunks() -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        accumulate(answering(ANSWERS["cut"]))


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "cut"])
def test_the_accumulated_chunks_are_the_whole_answer(name: str) -> None:
    gateway = answering(ANSWERS[name])
    whole = gateway.client().chat.completions.create(model="tiny", messages=[QUESTION], logprobs=True)
    accumulated = accumulate(gateway)
    assert accumulated.id == whole.id
    assert accumulated.usage == whole.usage
    for from_chunks, at_once in zip(accumulated.choices, whole.choices, strict=True):
        assert from_chunks.finish_reason == at_once.finish_reason
        assert from_chunks.logprobs == at_once.logprobs
        echoes = [gateway.dialect.read(echo_body(part.message)).messages[1] for part in (from_chunks, at_once)]
        assert echoes[0].message == echoes[1].message


def echo_body(message: Any) -> bytes:
    """Return a request that repeats a message of the SDK."""
    return body(QUESTION, message.to_dict(), QUESTION)


@pytest.mark.parametrize("name", ["text", "empty", "calls", "all"])
def test_a_message_that_the_sdk_sends_back_is_an_exact_echo(name: str) -> None:
    given = ANSWERS[name]
    gateway = answering(given)
    client = gateway.client()
    whole = client.chat.completions.create(model="tiny", messages=[QUESTION]).choices[0].message
    accumulated = accumulate(gateway).choices[0].message
    (sent,) = gateway.dialect.sent_messages(gateway.requests[0], given)
    for echo in (
        whole,
        whole.to_dict(),
        whole.model_dump(),
        whole.model_dump(exclude_none=True),
        whole.model_dump(exclude_unset=True),
        accumulated,
    ):
        conversation: Any = [QUESTION, echo, QUESTION]
        client.chat.completions.create(model="tiny", messages=conversation)
        assert gateway.requests[-1].messages[1].exact_key == sent.exact_key


def test_the_message_of_a_reply_can_be_sent_to_a_chat_api() -> None:
    calls = tuple(ParsedToolCall(None, "add", {"a": 1.5, "b": "é"}, "", None) for _ in range(2))
    message, _ = build_assistant_message(ParsedCompletion("I add.", None, calls), 0)
    read: Any = TypeAdapter(ChatCompletionAssistantMessageParam).validate_python(message, strict=True)
    assert [call["function"]["arguments"] for call in read["tool_calls"]] == ['{"a":1.5,"b":"é"}'] * 2


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (RefusalReason.INVALID, openai.BadRequestError),
        (RefusalReason.ENDED, openai.BadRequestError),
        (RefusalReason.TOO_LARGE, openai.APIStatusError),
        (RefusalReason.UNKNOWN_KEY, openai.AuthenticationError),
        (RefusalReason.NOT_FOUND, openai.NotFoundError),
        (RefusalReason.FAILED, openai.InternalServerError),
    ],
)
def test_a_refusal_is_an_error_of_the_sdk(reason: RefusalReason, error: type[openai.APIStatusError]) -> None:
    refusal = RequestRefused("Wrong.", reason=reason, parameter="messages[1]")
    with pytest.raises(error) as raised:
        refusing(refusal).client().chat.completions.create(model="tiny", messages=[QUESTION])
    assert raised.value.status_code == reason.status
    assert raised.value.param == "messages[1]"
    assert raised.value.body == orjson.loads(ChatDialect().write_refusal(refusal))["error"]


@pytest.mark.parametrize("reason", RefusalReason)
def test_an_error_is_valid(reason: RefusalReason) -> None:
    refusal = RequestRefused("Wrong.", reason=reason, parameter="messages[1]")
    error = orjson.loads(ChatDialect().write_refusal(refusal))["error"]
    assert ErrorObject.model_validate(error, strict=True).to_dict() == error


def test_a_failure_in_a_stream_is_an_error_of_the_sdk() -> None:
    refusal = RequestRefused("The engine failed.", reason=RefusalReason.FAILED)
    client = refusing(refusal).client()
    with pytest.raises(openai.APIError, match=r"The engine failed\.") as raised:
        list(client.chat.completions.create(model="tiny", messages=[QUESTION], stream=True))
    assert raised.value.type == "server_error"
