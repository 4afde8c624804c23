"""All that the dialect chat completions sends is valid by the types of the openai package, and its client reads it."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import Answer, AnsweredCall, RefusalReason, RequestRefused, SampledToken
from rollout.gateway.dialects.chat import ChatDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.chat_requests import ADD, CALLS, PATCH, QUESTION, answer, body, choice, chunks

openai = pytest.importorskip("openai")

import httpx  # noqa: E402
from openai.lib.streaming.chat import ChatCompletionStreamState  # noqa: E402
from openai.types import ErrorObject  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

COMPLETION = TypeAdapter(ChatCompletion)
CHUNK = TypeAdapter(ChatCompletionChunk)
TOOLS = [ADD, PATCH]
TOKENS = (SampledToken("3", -0.5), SampledToken("é", -1.25))
CUSTOM = (AnsweredCall("call_a", "apply_patch", '{"input": "x"}'),)
ANSWERS = {
    "text": answer(choice("3.5")),
    "empty": answer(choice("")),
    "reasoning alone": answer(choice(reasoning="Hm.")),
    "calls": answer(choice(calls=CALLS)),
    "all": answer(choice("I add.", CALLS, reasoning="Two calls.")),
    "cut off": answer(choice("3.", finish_reason=FinishReason.LENGTH)),
    "limit": answer(choice("The turns are used up."), limit=RolloutLimit.TURNS),
    "log-probs": answer(choice("3é", tokens=TOKENS)),
    "several": answer(choice("One."), choice("I add.", CALLS, reasoning="Hm."), choice(calls=CALLS[:1])),
}
FIELDS: dict[str, dict[str, Any]] = {
    "none": {},
    "all": {"tools": TOOLS, "logprobs": True, "top_logprobs": 0, "stream_options": {"include_usage": True}},
}
FAILURE = RequestRefused("The engine is gone.", reason=RefusalReason.FAILED, parameter="messages[1]")


class Served:
    """A client of the package, whose requests the dialect answers in the same process."""

    def __init__(self, *answers: Answer, failure: RequestRefused | None = None) -> None:
        self.dialect = ChatDialect()
        self.bodies: list[bytes] = []
        self._answers: Iterator[Answer] = iter(answers)
        self._failure = failure
        transport = httpx.MockTransport(self._answer)
        self.client = openai.OpenAI(
            base_url="http://gateway.test/v1",
            api_key="key",
            max_retries=0,
            http_client=httpx.Client(transport=transport),
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.content)
        try:
            turn = self.dialect.read(request.content)
        except RequestRefused as refusal:
            return httpx.Response(refusal.reason.status, content=self.dialect.write_refusal(refusal))
        if turn.streamed:
            failure, dialect = self._failure, self.dialect
            sent = dialect.write_failure_events(turn, failure) if failure else dialect.write_events(turn, self._next())
            content = b"".join((b": waiting\n\n", *sent))
            return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})
        content = self.dialect.write_answer(turn, self._next())
        return httpx.Response(200, content=content, headers={"content-type": "application/json"})

    def _next(self) -> Answer:
        return next(self._answers)

    def echoes(self) -> list[Any]:
        """Return the message that is read from each echo in the second request."""
        return list(self.dialect.read(self.bodies[1]).messages[1:])

    def sent(self, given: Answer) -> list[Any]:
        """Return the messages that the dialect expects as echoes of an answer to the first request."""
        return list(self.dialect.sent_messages(self.dialect.read(self.bodies[0]), given))


def strict(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Validate a value; numbers and texts must have the right types already."""
    return adapter.validate_json(orjson.dumps(value), strict=True)


def _calls(message: Any) -> list[tuple[str, str, str]]:
    """Return the id, the name and the arguments of each call."""
    return [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_completion_is_valid(name: str, fields: str) -> None:
    dialect = ChatDialect()
    written = dialect.write_answer(dialect.read(body(**FIELDS[fields])), ANSWERS[name])
    completion = strict(COMPLETION, orjson.loads(written))
    assert [given.index for given in completion.choices] == list(range(len(ANSWERS[name].choices)))


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_every_chunk_is_valid(name: str, fields: str) -> None:
    dialect = ChatDialect()
    request = dialect.read(body(stream=True, **FIELDS[fields]))
    for chunk in chunks(dialect.write_events(request, ANSWERS[name])):
        assert strict(CHUNK, chunk).id == "chatcmpl-a1"


def test_the_call_of_a_custom_tool_is_valid() -> None:
    dialect = ChatDialect()
    written = dialect.write_answer(dialect.read(body(tools=TOOLS)), answer(choice(calls=CUSTOM)))
    (call,) = strict(COMPLETION, orjson.loads(written)).choices[0].message.tool_calls
    assert (call.type, call.custom.input) == ("custom", "x")


@pytest.mark.parametrize("reason", RefusalReason)
def test_an_error_is_valid(reason: RefusalReason) -> None:
    refusal = RequestRefused("It is wrong.", reason=reason, parameter="messages[1]")
    error = orjson.loads(ChatDialect().write_refusal(refusal))["error"]
    assert ErrorObject.model_validate(error).message == "It is wrong."


@pytest.mark.parametrize("name", ANSWERS)
def test_the_sdk_puts_a_stream_together(name: str) -> None:
    state = ChatCompletionStreamState()
    dialect = ChatDialect()
    request = dialect.read(body(stream=True, logprobs=True, stream_options={"include_usage": True}))
    for chunk in chunks(dialect.write_events(request, ANSWERS[name])):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    final = state.current_completion_snapshot
    whole = ChatCompletion.model_validate_json(dialect.write_answer(request, ANSWERS[name]))
    assert final.usage == whole.usage
    for put_together, expected in zip(final.choices, whole.choices, strict=True):
        assert put_together.finish_reason == expected.finish_reason
        assert (put_together.message.content or "") == (expected.message.content or "")
        assert _calls(put_together.message) == _calls(expected.message)
        assert put_together.logprobs == expected.logprobs


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "cut off"])
def test_the_client_streams_an_answer(name: str) -> None:
    served = Served(ANSWERS[name])
    with served.client.chat.completions.stream(model="tiny", messages=[QUESTION]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [given.message.content or "" for given in final.choices] == [given.text for given in ANSWERS[name].choices]


@pytest.mark.parametrize(
    "as_sent",
    [
        lambda message: message,
        lambda message: message.model_dump(),
        lambda message: message.model_dump(exclude_none=True),
        lambda message: message.model_dump(exclude_unset=True),
        lambda message: message.to_dict(),
    ],
    ids=["object", "dump", "dump without null", "dump of what is set", "dict"],
)
@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_client_appends_equals_the_answer(name: str, as_sent: Any) -> None:
    served = Served(ANSWERS[name], answer(choice("Done.")))
    given = served.client.chat.completions.create(model="tiny", messages=[QUESTION], tools=TOOLS)
    echoes = [as_sent(choice_of.message) for choice_of in given.choices]
    served.client.chat.completions.create(model="tiny", messages=[QUESTION, *echoes, QUESTION], tools=TOOLS)
    expected = [message.exact_key for message in served.sent(ANSWERS[name])]
    assert [message.exact_key for message in served.echoes()[:-1]] == expected


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "cut off"])
def test_what_the_client_appends_after_a_stream_equals_the_answer(name: str) -> None:
    served = Served(ANSWERS[name], answer(choice("Done.")))
    with served.client.chat.completions.stream(model="tiny", messages=[QUESTION]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    echoes = [choice_of.message for choice_of in final.choices]
    served.client.chat.completions.create(model="tiny", messages=[QUESTION, *echoes, QUESTION])
    expected = [message.exact_key for message in served.sent(ANSWERS[name])]
    assert [message.exact_key for message in served.echoes()[:-1]] == expected


def test_the_client_raises_a_refusal_with_its_place() -> None:
    wrong: Any = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
    with pytest.raises(openai.BadRequestError) as raised:
        Served().client.chat.completions.create(model="tiny", messages=[QUESTION, wrong])
    assert (raised.value.param, raised.value.type) == ("messages[1].content[0]", "invalid_request_error")


def test_the_client_raises_a_failure_in_a_stream() -> None:
    served = Served(failure=FAILURE)
    stream = served.client.chat.completions.create(model="tiny", messages=[QUESTION], stream=True)
    with pytest.raises(openai.APIError, match="The engine is gone"):
        list(stream)
