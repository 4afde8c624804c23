"""The dialect OpenAI chat completions, `POST /v1/chat/completions`.

A program sends the whole conversation at every turn. Messages that were read before are found by their bytes, so a long
conversation costs little more than splitting its JSON.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from rollout.gateway.dialects.base import Answer, IncomingMessage, RequestRefused, TurnRequest
from rollout.gateway.dialects.body_reader import BodyReader
from rollout.gateway.dialects.chat_answers import (
    completion_bytes,
    completion_events,
    echoed_message,
    failure_events,
)
from rollout.gateway.dialects.chat_messages import ConversationBuilder, ReadMessage, read_message
from rollout.gateway.dialects.chat_settings import read_settings
from rollout.gateway.dialects.chat_tools import ToolSet, read_tools
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.openai_errors import error_object
from rollout.gateway.dialects.reading import KnownItems, split_list
from rollout.gateway.dialects.request_body import RequestBody

_NO_TOOLS = ToolSet()


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What this dialect needs of a request to write its answer.

    Attributes:
        wants_usage: whether the stream ends with the numbers of tokens.
        custom_tools: the names of the tools whose calls have an input instead of arguments.
    """

    wants_usage: bool
    custom_tools: frozenset[str]


class ChatDialect:
    """Chat completions, for one endpoint. It implements `Dialect`."""

    name = "chat"

    def __init__(self) -> None:
        """Start without any known message."""
        self._bodies = BodyReader("messages", KnownItems(read_message).read)
        self._tools = KnownItems(read_tools)
        self._builder = ConversationBuilder()
        self._places: list[str] = []

    def read(self, body: bytes | RequestBody) -> TurnRequest:
        """Read the body of a request. Raises RequestRefused."""
        fields, items = self._bodies.read(body)
        settings = read_settings(fields)
        tools = self._tools.read(fields["tools"], "tools") if "tools" in fields else _NO_TOOLS
        messages, places = self._read_messages(fields, items)
        if messages[-1].role == "assistant":
            raise RequestRefused(
                f"{places[-1]} is of the assistant, but the last message must be of the user or of a tool: the policy "
                "cannot continue a message that was begun for it.",
                parameter=places[-1],
            )
        return TurnRequest(
            messages=messages,
            places=places,
            tools=tools.schemas,
            sampling=settings.sampling,
            constraints=settings.constraints,
            choices=settings.choices,
            streamed=settings.streamed,
            may_call_tools=settings.may_call_tools,
            wants_logprobs=settings.wants_logprobs,
            model=settings.model,
            ignored_tools=tools.ignored + settings.ignored_tools,
            options=ChatOptions(settings.wants_usage, tools.custom),
        )

    def part_place(self, request: TurnRequest, index: int, part: int) -> str:
        """Return the place in the request of a part of a message."""
        return f"{request.places[index]}.content[{part}]"

    def write_answer(self, request: TurnRequest, answer: Answer) -> bytes:
        """Return the answer as one JSON object."""
        return completion_bytes(answer, request.model, request.options.custom_tools, request.wants_logprobs)

    def write_events(self, request: TurnRequest, answer: Answer) -> Iterable[bytes]:
        """Return the answer as server-sent events."""
        options: ChatOptions = request.options
        return completion_events(
            answer,
            request.model,
            options.custom_tools,
            has_logprobs=request.wants_logprobs,
            has_usage=options.wants_usage,
        )

    def sent_messages(self, request: TurnRequest, answer: Answer) -> Sequence[IncomingMessage]:
        """Return, for each choice, the message that `read` returns for an exact echo."""
        custom = request.options.custom_tools
        return [incoming_message(echoed_message(choice, custom)) for choice in answer.choices]

    def write_refusal(self, refusal: RequestRefused) -> bytes:
        """Return the JSON body of an error."""
        return orjson.dumps({"error": error_object(refusal)})

    def write_failure_events(self, request: TurnRequest, refusal: RequestRefused) -> Iterable[bytes]:
        """Return the events of an error after the first byte of a stream was sent."""
        return failure_events(refusal)

    def _read_messages(
        self, fields: Mapping[str, msgspec.Raw], items: list[ReadMessage] | None
    ) -> tuple[list[IncomingMessage], list[str]]:
        """Return the messages of a request, and the place of each. Raises RequestRefused."""
        if items is None and "messages" in fields:
            split_list(fields["messages"], "messages")
        if not items:
            raise RequestRefused("messages is missing or empty. Send at least one message.", parameter="messages")
        for index in range(len(self._places), len(items)):
            self._places.append(f"messages[{index}]")
        return self._builder.build(items, self._places[: len(items)])
