"""The dialect OpenAI Responses, `POST /v1/responses`.

A request has the conversation as items, or continues an earlier answer of the same attempt by its id. Answers are kept
for the attempt, whatever `store` says, so that items and answers can be named by their ids.
"""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from rollout.gateway.dialects.base import Answer, IncomingMessage, RequestRefused, TurnRequest
from rollout.gateway.dialects.body_reader import BodyReader
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.openai_errors import error_object
from rollout.gateway.dialects.reading import KnownItems, parse, split_list
from rollout.gateway.dialects.request_body import RequestBody
from rollout.gateway.dialects.responses_answers import (
    REPEATED_KEYS,
    SentAnswer,
    failed_object,
    make_output,
    response_id,
    response_object,
)
from rollout.gateway.dialects.responses_events import answer_events, failure_events
from rollout.gateway.dialects.responses_items import Item, ItemKind, ItemReader, KeptItems
from rollout.gateway.dialects.responses_messages import KeptConversations, MessageBuilder
from rollout.gateway.dialects.responses_settings import ENCRYPTED_REASONING, LOGPROBS, read_settings
from rollout.gateway.dialects.responses_tools import NO_TOOLS, ToolSet, read_tools

_PLACES = tuple(f"input[{index}]" for index in range(1024))


@dataclass(frozen=True, slots=True)
class ResponsesOptions:
    """What this dialect needs of a request to write its answer.

    Attributes:
        items: the items of the whole conversation.
        tools: the tools of the request.
        repeated: the JSON of the keys that the response object repeats.
        is_encrypted: whether the client wants encrypted reasoning.
    """

    items: list[Item]
    tools: ToolSet
    repeated: Mapping[str, bytes]
    is_encrypted: bool


class ResponsesDialect:
    """Reads and writes the Responses API for one attempt."""

    name = "responses"

    def __init__(self) -> None:
        """Start an attempt without earlier answers."""
        self._kept = KeptItems()
        self._conversations = KeptConversations()
        self._builder = MessageBuilder()
        self._bodies = BodyReader("input", KnownItems(ItemReader(self._kept).read).read)
        self._tools = KnownItems(read_tools)
        self._sent: dict[str, SentAnswer] = {}

    def read(self, body: bytes | RequestBody) -> TurnRequest:
        """Read the body of a request. Raises RequestRefused."""
        fields, input_items = self._bodies.read(body)
        settings = read_settings(fields)
        tools = self._tools.read(fields["tools"], "tools") if "tools" in fields else NO_TOOLS
        items: list[Item] = []
        places: list[str] = []
        if settings.previous_response_id is not None:
            items = self._find_conversation(settings.previous_response_id)
            places = ["previous_response_id"] * len(items)
        self._add_input(fields, input_items, items, places)
        messages, message_places = self._builder.build(settings.instructions, items, places)
        if not messages:
            raise RequestRefused("input has no message. Send at least one.", parameter="input")
        return TurnRequest(
            messages=messages,
            places=message_places,
            tools=tools.schemas,
            sampling=settings.sampling,
            constraints=settings.constraints,
            streamed=settings.streamed,
            may_call_tools=settings.may_call_tools,
            wants_logprobs=LOGPROBS in settings.include,
            model=settings.model,
            ignored_tools=tools.ignored,
            options=ResponsesOptions(items, tools, _repeated(fields), ENCRYPTED_REASONING in settings.include),
        )

    def part_place(self, request: TurnRequest, index: int, part: int) -> str:
        """Return the place in the request of a part of a message; results of tools have their parts in `output`."""
        key = "output" if request.messages[index].role == "tool" else "content"
        return f"{request.places[index]}.{key}[{part}]"

    def write_answer(self, request: TurnRequest, answer: Answer) -> bytes:
        """Return the answer as one JSON object."""
        sent = self._send(request, answer)
        return orjson.dumps(response_object(answer, request.options.repeated, request.model, sent))

    def write_events(self, request: TurnRequest, answer: Answer) -> Iterable[bytes]:
        """Return the answer as server-sent events."""
        sent = self._send(request, answer)
        return answer_events(response_object(answer, request.options.repeated, request.model, sent))

    def sent_messages(self, request: TurnRequest, answer: Answer) -> Sequence[IncomingMessage]:
        """Return the message that `read` returns for an echo that repeats everything exactly."""
        return [self._builder.answer_message(self._send(request, answer).items)]

    def write_refusal(self, refusal: RequestRefused) -> bytes:
        """Return the JSON body of an error."""
        return orjson.dumps({"error": error_object(refusal)})

    def write_failure_events(self, request: TurnRequest, refusal: RequestRefused) -> Iterable[bytes]:
        """Return the events of an error after the stream has begun."""
        failed_id = f"resp_{secrets.token_hex(12)}"
        response = failed_object(failed_id, int(time.time()), request.options.repeated, request.model, refusal)
        return failure_events(response, error_object(refusal))

    def _find_conversation(self, previous: str) -> list[Item]:
        found = self._conversations.find(previous)
        if found is None:
            raise RequestRefused(
                f"previous_response_id names {previous[:128]!r}, which is not an answer of this rollout. Send the "
                "whole conversation in `input`, or the id of an answer that this key got.",
                parameter="previous_response_id",
            )
        return found

    def _add_input(
        self, fields: Mapping[str, msgspec.Raw], input_items: list[Item] | None, items: list[Item], places: list[str]
    ) -> None:
        """Add the items of `input`, which may also be the text of a user message. Raises RequestRefused."""
        if input_items is not None:
            items.extend(input_items)
            places.extend(_PLACES[: len(input_items)])
            places.extend(f"input[{index}]" for index in range(len(_PLACES), len(input_items)))
            return
        raw = fields.get("input")
        data = b"null" if raw is None else bytes(raw)
        if data[:1] == b'"':
            message = incoming_message({"role": "user", "content": parse(data, "input")})
            items.append(Item(ItemKind.USER, message=message))
            places.append("input")
            return
        if data == b"null":
            if not items:
                raise RequestRefused("The request has no `input`. Send a text or a list of items.", parameter="input")
            return
        split_list(data, "input")

    def _send(self, request: TurnRequest, answer: Answer) -> SentAnswer:
        """Return the items of an answer, and keep them. The same answer has the same items."""
        sent = self._sent.get(answer.id)
        if sent is None:
            options: ResponsesOptions = request.options
            sent = self._sent[answer.id] = make_output(answer, options.tools.offered, options.is_encrypted)
            for item, output in zip(sent.items, sent.output, strict=True):
                self._kept.keep(output["id"], item)
            self._conversations.keep(response_id(answer), [*options.items, *sent.items])
        return sent


def _repeated(fields: Mapping[str, msgspec.Raw]) -> dict[str, bytes]:
    """Return the JSON of the keys that the response object repeats, on one line as events need it."""
    repeated = {}
    for key in REPEATED_KEYS:
        raw = bytes(fields.get(key, b"null"))
        if raw != b"null":
            if key != "tools":
                parse(raw, key)
            repeated[key] = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    return repeated
