"""Writes answers as the server-sent events of the Responses API, in the official order."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from rollout.gateway.dialects.responses_answers import unfinished_object


class EventWriter:
    """Writes the events of one stream, with their numbers."""

    def __init__(self) -> None:
        """Start with number 0."""
        self._number = 0

    def write(self, kind: str, **values: Any) -> bytes:
        """Return one event."""
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **values})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def answer_events(response: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the events of a whole answer."""
    events = EventWriter()
    unfinished = orjson.Fragment(orjson.dumps(unfinished_object(response)))
    yield events.write("response.created", response=unfinished)
    yield events.write("response.in_progress", response=unfinished)
    for index, item in enumerate(response["output"]):
        yield from _ITEM_EVENTS[item["type"]](events, index, item)
        yield events.write("response.output_item.done", output_index=index, item=item)
    # The last event says whether the answer was cut off.
    yield events.write(f"response.{response['status']}", response=response)


def failure_events(response: Mapping[str, Any], error: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the events of a request that failed after its stream had begun.

    The SDK raises an error for `error`; Codex reads `response.failed` alone.
    """
    events = EventWriter()
    unfinished = {**response, "status": "in_progress", "error": None}
    yield events.write("response.created", response=unfinished)
    described = {"code": error["code"], "message": error["message"], "param": error["param"]}
    yield events.write("error", **described, error=error)
    yield events.write("response.failed", response=response)


def _reasoning_events(events: EventWriter, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    yield events.write(
        "response.output_item.added", output_index=index, item={**item, "summary": [], "status": "in_progress"}
    )
    for at, part in enumerate(item["summary"]):
        place = {"item_id": item["id"], "output_index": index, "summary_index": at}
        yield events.write("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
        yield events.write("response.reasoning_summary_text.delta", **place, delta=part["text"])
        yield events.write("response.reasoning_summary_text.done", **place, text=part["text"])
        yield events.write("response.reasoning_summary_part.done", **place, part=part)


def _text_events(events: EventWriter, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    yield events.write(
        "response.output_item.added", output_index=index, item={**item, "content": [], "status": "in_progress"}
    )
    for at, part in enumerate(item["content"]):
        place = {"item_id": item["id"], "output_index": index, "content_index": at}
        logprobs = part["logprobs"]
        yield events.write("response.content_part.added", **place, part={**part, "text": "", "logprobs": []})
        if part["text"]:
            yield events.write("response.output_text.delta", **place, delta=part["text"], logprobs=logprobs)
        yield events.write("response.output_text.done", **place, text=part["text"], logprobs=logprobs)
        yield events.write("response.content_part.done", **place, part=part)


def _call_events(events: EventWriter, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    place = {"item_id": item["id"], "output_index": index}
    added = {**item, "arguments": "", "status": "in_progress"}
    yield events.write("response.output_item.added", output_index=index, item=added)
    yield events.write("response.function_call_arguments.delta", **place, delta=item["arguments"])
    yield events.write("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])


def _custom_call_events(events: EventWriter, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    place = {"item_id": item["id"], "output_index": index}
    added = {**item, "input": "", "status": "in_progress"}
    yield events.write("response.output_item.added", output_index=index, item=added)
    yield events.write("response.custom_tool_call_input.delta", **place, delta=item["input"])
    yield events.write("response.custom_tool_call_input.done", **place, input=item["input"])


_ITEM_EVENTS = {
    "reasoning": _reasoning_events,
    "message": _text_events,
    "function_call": _call_events,
    "custom_tool_call": _custom_call_events,
}
