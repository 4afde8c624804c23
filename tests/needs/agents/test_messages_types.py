"""What the Messages dialect sends is valid for the Anthropic SDK's own types, and its stream puts it together."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import Answer, RefusalReason, RequestRefused, TurnRequest
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.messages_bodies import QUESTION, answer_of, body_of, call_of, parsed_events

anthropic = pytest.importorskip("anthropic")
httpx = pytest.importorskip("httpx2")

types = anthropic.types
EVENTS = {
    "message_start": (types.RawMessageStartEvent, types.beta.BetaRawMessageStartEvent),
    "content_block_start": (types.RawContentBlockStartEvent, types.beta.BetaRawContentBlockStartEvent),
    "content_block_delta": (types.RawContentBlockDeltaEvent, types.beta.BetaRawContentBlockDeltaEvent),
    "content_block_stop": (types.RawContentBlockStopEvent, types.beta.BetaRawContentBlockStopEvent),
    "message_delta": (types.RawMessageDeltaEvent, types.beta.BetaRawMessageDeltaEvent),
    "message_stop": (types.RawMessageStopEvent, types.beta.BetaRawMessageStopEvent),
}
ANSWERS = {
    "everything": answer_of("I add.", call_of(), call_of("{}", "call_2", "look_at"), reasoning="Two\ncalls."),
    "text": answer_of("It is 3.5."),
    "only calls": answer_of("", call_of()),
    "only reasoning": answer_of("", reasoning="Hm."),
    "nothing": answer_of(),
    "the length": answer_of("It is", finish_reason=FinishReason.LENGTH),
    "a limit": answer_of("The limit of turns is used up.", limit=RolloutLimit.TURNS),
    "no JSON": answer_of("", call_of("{no JSON")),
}
KEYS_OF_OURS = {"rollout"}
ERRORS = [
    (RefusalReason.INVALID, anthropic.BadRequestError),
    (RefusalReason.ENDED, anthropic.BadRequestError),
    (RefusalReason.UNKNOWN_KEY, anthropic.AuthenticationError),
    (RefusalReason.NOT_FOUND, anthropic.NotFoundError),
    (RefusalReason.TOO_LARGE, anthropic.RequestTooLargeError),
    (RefusalReason.FAILED, anthropic.InternalServerError),
]


@pytest.fixture
def dialect() -> MessagesDialect:
    return MessagesDialect()


@pytest.fixture
def request_read(dialect: MessagesDialect) -> TurnRequest:
    return dialect.read(body_of(QUESTION))


def check(value: Any, kind: Any) -> None:
    """Validate a value, which the SDK itself does not do, and check that the type knows all of its keys."""
    parsed = kind.model_validate(value, strict=True)
    assert set(find_extras(parsed)) <= KEYS_OF_OURS


def find_extras(value: Any) -> Iterator[str]:
    """Return the keys that the types of the SDK do not know."""
    if isinstance(value, list):
        for item in value:
            yield from find_extras(item)
    elif hasattr(value, "model_fields_set"):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from find_extras(getattr(value, name))


def client_of(content: bytes, status: int = 200, kind: str = "application/json") -> Any:
    """Return a client of the SDK whose server answers with these bytes."""
    answer = httpx.Response(status, content=content, headers={"content-type": kind})
    http_client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    return anthropic.Anthropic(api_key="key", base_url="http://gateway", http_client=http_client, max_retries=0)


def ask(client: Any) -> Any:
    return client.messages.create(model="tiny", max_tokens=64, messages=[QUESTION])


def stream_of(client: Any, *, beta: bool = False) -> Any:
    messages = client.beta.messages if beta else client.messages
    return messages.stream(model="tiny", max_tokens=64, messages=[QUESTION])


def without_extras(message: Any) -> dict[str, Any]:
    """Return a message as JSON without what the SDK's helpers add to it."""
    found: dict[str, Any] = message.model_dump(mode="json", exclude_none=True)
    for block in found["content"]:
        block.pop("parsed_output", None)
    return found


@pytest.mark.parametrize("kind", [types.Message, types.beta.BetaMessage])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_valid(dialect: MessagesDialect, request_read: TurnRequest, name: str, kind: Any) -> None:
    check(orjson.loads(dialect.write_answer(request_read, ANSWERS[name])), kind)


@pytest.mark.parametrize("name", ANSWERS)
def test_each_event_is_valid(dialect: MessagesDialect, request_read: TurnRequest, name: str) -> None:
    for event in parsed_events(dialect.write_events(request_read, ANSWERS[name])):
        if event == {"type": "ping"}:  # The SDK has no type for it; it skips events of this name.
            continue
        for kind in EVENTS[event["type"]]:
            check(event, kind)


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_sdk_puts_the_events_together_to_the_answer(
    dialect: MessagesDialect, request_read: TurnRequest, name: str, beta: bool
) -> None:
    events = b": waiting\n\n" + b"".join(dialect.write_events(request_read, ANSWERS[name]))
    with stream_of(client_of(events, kind="text/event-stream"), beta=beta) as stream:
        streamed = stream.get_final_message()
    whole = ask(client_of(dialect.write_answer(request_read, ANSWERS[name])))
    assert without_extras(streamed) == without_extras(whole)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_echo_of_the_sdk_is_read_as_the_sent_message(
    dialect: MessagesDialect, request_read: TurnRequest, name: str, streamed: bool
) -> None:
    answer = ANSWERS[name]
    content = echo_of_the_sdk(dialect, request_read, answer, streamed)
    found = MessagesDialect().read(content).messages[1]
    [sent] = dialect.sent_messages(request_read, answer)
    assert (found.message, found.exact_key) == (sent.message, sent.exact_key)


def echo_of_the_sdk(dialect: MessagesDialect, request: TurnRequest, answer: Answer, streamed: bool) -> bytes:
    """Return the body of the request in which the SDK sends an answer back."""
    if streamed:
        events = b"".join(dialect.write_events(request, answer))
        with stream_of(client_of(events, kind="text/event-stream")) as stream:
            message = stream.get_final_message()
    else:
        message = ask(client_of(dialect.write_answer(request, answer)))
    bodies: list[bytes] = []

    def receive(sent: Any) -> Any:
        bodies.append(sent.content)
        return httpx.Response(200, content=dialect.write_answer(request, answer))

    http_client = httpx.Client(transport=httpx.MockTransport(receive))
    client = anthropic.Anthropic(api_key="key", base_url="http://gateway", http_client=http_client, max_retries=0)
    messages: list[Any] = [QUESTION, {"role": "assistant", "content": message.content}, QUESTION]
    client.messages.create(model="tiny", max_tokens=64, messages=messages)
    return bodies[0]


def test_a_token_count_is_valid(dialect: MessagesDialect) -> None:
    check(orjson.loads(dialect.write_token_count(17)), types.MessageTokensCount)


@pytest.mark.parametrize("reason", [reason for reason, _ in ERRORS if reason is not RefusalReason.TOO_LARGE])
def test_an_error_is_valid(dialect: MessagesDialect, reason: RefusalReason) -> None:
    # The SDK has no type for `request_too_large`, which the API documents for the status 413.
    check(orjson.loads(dialect.write_refusal(RequestRefused("It is wrong.", reason=reason))), types.ErrorResponse)


@pytest.mark.parametrize(("reason", "kind"), ERRORS)
def test_an_error_raises_the_error_of_its_status(dialect: MessagesDialect, reason: RefusalReason, kind: Any) -> None:
    body = dialect.write_refusal(RequestRefused("It is wrong.", reason=reason))
    with pytest.raises(kind, match="It is wrong"):
        ask(client_of(body, status=reason.status))


def test_an_error_in_a_stream_is_raised_with_its_text(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    start = next(iter(dialect.write_events(request_read, ANSWERS["text"])))
    refusal = RequestRefused("The engine failed.", reason=RefusalReason.FAILED)
    events = start + b"".join(dialect.write_failure_events(request_read, refusal))
    with (
        pytest.raises(anthropic.APIStatusError, match=r"The engine failed\."),
        stream_of(client_of(events, kind="text/event-stream")) as stream,
    ):
        stream.get_final_message()
