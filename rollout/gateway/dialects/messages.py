"""The dialect Anthropic Messages: `/v1/messages` and `/v1/messages/count_tokens`.

A user message of this API can hold the results of several calls, each of which becomes a message of its own. What the
API has for the provider alone, such as `cache_control`, is ignored wherever it stands.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from rollout.gateway.dialects.base import Answer, IncomingMessage, RequestRefused, TurnRequest
from rollout.gateway.dialects.body_reader import BodyReader
from rollout.gateway.dialects.messages_answers import (
    echoed_message,
    write_error,
    write_error_event,
    write_message,
    write_message_events,
    write_token_count,
)
from rollout.gateway.dialects.messages_blocks import MessageReader, ReadMessage, read_text
from rollout.gateway.dialects.messages_settings import read_settings
from rollout.gateway.dialects.reading import KnownItems, parse, require, split_list
from rollout.gateway.dialects.request_body import RequestBody
from rollout.gateway.dialects.session_messages import SystemMessages


class MessagesDialect:
    """Anthropic Messages, for one endpoint. It implements `Dialect`, and can also count tokens."""

    name = "messages"

    def __init__(self) -> None:
        """Start without any known message."""
        self._reader = MessageReader()
        self._bodies = BodyReader("messages", KnownItems(self._reader.read).read)
        self._tools = KnownItems(self._reader.read_tools)
        self._systems = KnownItems(read_text)
        self._joined = SystemMessages()

    def read(self, body: bytes | RequestBody) -> TurnRequest:
        """Read the body of a request. Raises RequestRefused."""
        request = self._read(body)
        if request.messages[-1].role == "assistant":
            place = request.places[-1]
            raise RequestRefused(
                f"{place} is of the assistant, but the last message must be of the user: the policy cannot continue a "
                "message that was begun for it.",
                parameter=place,
            )
        return request

    def read_count(self, body: bytes | RequestBody) -> TurnRequest:
        """Read the body of a request for the number of tokens in a prompt. Raises RequestRefused."""
        return self._read(body)

    def part_place(self, request: TurnRequest, index: int, part: int) -> str:
        """Return the place in the request of a part of a message, also beside tool results in the same message."""
        place = request.places[index]
        return f"{place}.content[{request.options.get(place, range(part + 1))[part]}]"

    def write_answer(self, request: TurnRequest, answer: Answer) -> bytes:
        """Return the answer as one JSON object."""
        return write_message(request, answer)

    def write_events(self, request: TurnRequest, answer: Answer) -> Iterable[bytes]:
        """Return the answer as server-sent events in the official order."""
        return write_message_events(request, answer)

    def sent_messages(self, request: TurnRequest, answer: Answer) -> Sequence[IncomingMessage]:
        """Return, for each choice, the message that `read` returns for an exact echo."""
        return [self._reader.known(echoed_message(choice)) for choice in answer.choices]

    def write_token_count(self, count: int) -> bytes:
        """Return the answer to a request for the number of tokens in a prompt."""
        return write_token_count(count)

    def write_refusal(self, refusal: RequestRefused) -> bytes:
        """Return the JSON body of an error."""
        return write_error(refusal)

    def write_failure_events(self, request: TurnRequest, refusal: RequestRefused) -> Iterable[bytes]:
        """Return the events of an error after the first byte of a stream was sent."""
        return (write_error_event(refusal),)

    def _read(self, body: bytes | RequestBody) -> TurnRequest:
        fields, read_messages = self._bodies.read(body)
        settings = read_settings(fields)
        messages, places, part_indices = self._read_messages(fields, read_messages)
        tools = self._tools.read(fields["tools"], "tools") if "tools" in fields else None
        ignored = tools.ignored if tools else ()
        if "mcp_servers" in fields:
            servers = parse(fields["mcp_servers"], "mcp_servers")
            if servers is not None and require(servers, list, "mcp_servers", "a list"):
                ignored += ("mcp_server",) * len(servers)
        return TurnRequest(
            messages=messages,
            places=places,
            tools=tools.schemas if tools else None,
            sampling=settings.sampling,
            constraints=settings.constraints,
            streamed=settings.streamed,
            may_call_tools=settings.may_call_tools,
            model=settings.model,
            ignored_tools=ignored,
            options=part_indices,
        )

    def _read_messages(
        self, fields: Mapping[str, msgspec.Raw], read_messages: list[ReadMessage] | None
    ) -> tuple[list[IncomingMessage], list[str], Mapping[str, Sequence[int]]]:
        """Return the messages of a request, the place of each, and by places the indices of parts beside results."""
        if read_messages is None:
            if "messages" in fields:
                split_list(fields["messages"], "messages")
            raise RequestRefused("messages is missing; it must be a list of messages.", parameter="messages")
        items = [(f"messages[{index}]", message) for index, message in enumerate(read_messages)]
        messages: list[IncomingMessage] = []
        places: list[str] = []
        start = self._read_leading_system(fields, items, messages, places)
        part_indices: dict[str, Sequence[int]] = {}
        for place, item in items[start:]:
            for suffix, result in item.results:
                messages.append(result)
                places.append(place + suffix)
            if item.message is not None:
                messages.append(item.message)
                places.append(place)
                if item.results:
                    part_indices[place] = item.part_indices
        if start == len(items) or not messages:
            raise RequestRefused("messages has no message of the user.", parameter="messages")
        return messages, places, part_indices

    def _read_leading_system(
        self,
        fields: Mapping[str, msgspec.Raw],
        items: Sequence[tuple[str, ReadMessage]],
        messages: list[IncomingMessage],
        places: list[str],
    ) -> int:
        """Add the system message at the start, if there is one. Return the number of messages that are part of it."""
        texts: list[tuple[str, str]] = []
        if "system" in fields and bytes(fields["system"]) != b"null":
            texts.append(("system", self._systems.read(fields["system"], "system")))
        start = 0
        for place, item in items:
            if item.system_text is None:
                break
            texts.append((place, item.system_text))
            start += 1
        texts = [(place, text) for place, text in texts if text]
        if texts:
            messages.append(self._joined.join([text for _, text in texts]))
            places.append(texts[0][0])
        return start
