"""All that the dialect Responses sends is valid by the types of the openai package, and its client reads it."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import (
    Answer,
    AnswerChoice,
    AnsweredCall,
    RefusalReason,
    RequestRefused,
    SampledToken,
)
from rollout.gateway.dialects.responses import ResponsesDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.responses_requests import ADD, CALLS, answer, body, events, messages

openai = pytest.importorskip("openai")

import httpx  # noqa: E402
from openai.types.responses import Response, ResponseOutputItem, ResponseStreamEvent  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

EVENT = TypeAdapter(ResponseStreamEvent)
ITEM = TypeAdapter(ResponseOutputItem)
TOOLS = [
    {**ADD, "strict": True},
    {"type": "custom", "name": "apply_patch", "description": "Edit files."},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Sub-agents.",
        "tools": [{"type": "function", "name": "wait", "parameters": {"type": "object", "properties": {}}}],
    },
]
LOGPROBS = AnswerChoice("é", "", (), FinishReason.STOP, 1, (SampledToken("é", -0.5),))
ANSWERS = {
    "text": answer("3.5"),
    "empty": answer(""),
    "all": answer("I add.", CALLS, reasoning="Two calls."),
    "custom": answer(calls=(AnsweredCall("call_a", "apply_patch", '{"input": "x"}'),)),
    "namespace": answer(calls=(AnsweredCall("call_a", "agents__wait", "{}"),), reasoning="Wait."),
    "cut off": answer("3.", finish_reason=FinishReason.LENGTH),
    "limit": answer("The turns are used up.", limit=RolloutLimit.TURNS),
    "log-probs": Answer("a1", 1, (LOGPROBS,), 1),
}
FIELDS = {
    "none": {},
    "all": {
        "tools": TOOLS,
        "tool_choice": "auto",
        "instructions": "You add.",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "metadata": {"a": "b"},
        "store": False,
        "temperature": 0.5,
        "max_output_tokens": 64,
    },
}
FAILURE = RequestRefused("The engine is gone.", reason=RefusalReason.FAILED, parameter="input[1]")


class Served:
    """A client of the package, whose requests the dialect answers in the same process."""

    def __init__(self, *answers: Answer, failure: RequestRefused | None = None) -> None:
        self.dialect = ResponsesDialect()
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
        if self._failure is not None:
            content = b"".join((b": waiting\n\n", *self.dialect.write_failure_events(turn, self._failure)))
            return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})
        given = next(self._answers)
        if turn.streamed:
            content = b"".join((b": waiting\n\n", *self.dialect.write_events(turn, given)))
            return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})
        content = self.dialect.write_answer(turn, given)
        return httpx.Response(200, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_response_is_valid(name: str, fields: str) -> None:
    dialect = ResponsesDialect()
    written = dialect.write_answer(dialect.read(body(**FIELDS[fields])), ANSWERS[name])
    response = Response.model_validate_json(written)
    for item in orjson.loads(written)["output"]:
        ITEM.validate_python(item)
    assert response.id == "resp_a1"


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_every_event_is_valid(name: str, fields: str) -> None:
    dialect = ResponsesDialect()
    request = dialect.read(body(stream=True, **FIELDS[fields]))
    for event in events(dialect.write_events(request, ANSWERS[name])):
        assert EVENT.validate_python(event).type == event["type"]


def test_every_event_of_a_failure_is_valid() -> None:
    dialect = ResponsesDialect()
    for event in events(dialect.write_failure_events(dialect.read(body(stream=True)), FAILURE)):
        assert EVENT.validate_python(event).type == event["type"]


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "cut off"])
def test_the_client_puts_a_stream_together(name: str) -> None:
    served = Served(ANSWERS[name])
    with served.client.responses.stream(model="tiny", input="What is 1.5 + 2?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    choice = ANSWERS[name].choices[0]
    assert kinds[-1] == "response.completed"
    assert final.output_text == choice.text
    assert [item.call_id for item in final.output if "call" in item.type] == [call.id for call in choice.calls]


def test_the_client_reads_a_stream_that_was_cut_off() -> None:
    served = Served(ANSWERS["cut off"])
    with served.client.responses.stream(model="tiny", input="What is 1.5 + 2?") as stream:
        last = list(stream)[-1]
    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_client_appends_equals_the_answer(name: str, is_streamed: bool) -> None:
    served = Served(ANSWERS[name], answer("Done.", id="a2"))
    asked: list[Any] = [{"role": "user", "content": "What is 1.5 + 2?"}]
    create = served.client.responses.create
    given = create(model="tiny", input=asked, tools=TOOLS, stream=is_streamed)
    asked += list(given)[-1].response.output if is_streamed else given.output
    create(model="tiny", input=asked, tools=TOOLS)
    first, second = (served.dialect.read(sent) for sent in served.bodies)
    assert second.messages[1] is served.dialect.sent_messages(first, ANSWERS[name])[0]


def test_the_client_continues_an_answer_by_its_id() -> None:
    served = Served(ANSWERS["text"], answer("Yes.", id="a2"))
    first = served.client.responses.create(model="tiny", input="What is 1.5 + 2?")
    served.client.responses.create(model="tiny", input="Sure?", previous_response_id=first.id)
    texts = [message["content"] for message in messages(served.dialect.read(served.bodies[1]))]
    assert texts == ["What is 1.5 + 2?", "3.5", "Sure?"]


def test_the_client_raises_a_refusal_with_its_place() -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        Served().client.responses.create(model="tiny", input="Hello", background=True)
    assert (raised.value.param, raised.value.type) == ("background", "invalid_request_error")


def test_the_client_raises_a_failure_in_a_stream() -> None:
    stream = Served(failure=FAILURE).client.responses.create(model="tiny", input="Hello", stream=True)
    with pytest.raises(openai.APIError, match="The engine is gone"):
        list(stream)


def test_the_client_raises_a_failure_while_it_puts_a_stream_together() -> None:
    with Served(failure=FAILURE).client.responses.stream(model="tiny", input="Hello") as stream:
        with pytest.raises(openai.APIError, match="The engine is gone"):
            list(stream)
