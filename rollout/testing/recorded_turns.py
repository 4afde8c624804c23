"""The turns of a recorded rollout: the messages that the model got, and its answers."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import orjson

from renderers_adapter.pool import RendererPool
from renderers_adapter.tokens import LogicalIds, concat_ids
from rollout.environments.base import Reply
from rollout.records.call_arguments import write_arguments
from rollout.records.kinds import Step
from rollout.records.messages import CanonicalMessage, Message, ToolCall, canonicalise, digest_tools
from rollout.session.replies import build_assistant_message
from rollout.trainer.trajectory import Trajectory, TrajectoryNode


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One turn of a recorded rollout.

    Attributes:
        turn: the number of the turn.
        conversation: the messages that the model got.
        tools: the schemas of the tools that the model got.
        tools_digest: the hash that identifies these tools.
        reply: the answer of the model.
    """

    turn: int
    conversation: tuple[CanonicalMessage, ...]
    tools: Sequence[Mapping[str, Any]] | None
    tools_digest: bytes
    reply: Reply

    def has_conversation(self, conversation: Sequence[CanonicalMessage], tools_digest: bytes) -> bool:
        """Whether the model got exactly these messages and tools."""
        return tools_digest == self.tools_digest and [m.digest for m in conversation] == [
            m.digest for m in self.conversation
        ]

    def common_length(self, conversation: Sequence[CanonicalMessage]) -> int:
        """Return the number of first messages that are the same."""
        pairs = zip(self.conversation, conversation, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].digest == pair[1].digest, pairs))


def read_turns(trajectory: Trajectory, renderers: RendererPool | None) -> list[RecordedTurn]:
    """Return the turns of a trajectory, in order.

    Args:
        trajectory: the recorded rollout.
        renderers: the renderers, which parse the sampled tokens again. If it is None, the answers come from the
            recorded messages, in which malformed tool calls are text.
    """
    turns = []
    for step in trajectory.steps:
        path = trajectory.path(step.leaf)
        tools = trajectory.steps[path[0].step].tools
        conversation = tuple(_canonical(node.message) for node in path[:-1])
        reply = _read_reply(step, path, tools, renderers)
        turns.append(RecordedTurn(step.turn, conversation, tools, digest_tools(tools), reply))
    return sorted(turns, key=lambda recorded: recorded.turn)


def _canonical(message: Message) -> CanonicalMessage:
    """Return a recorded message in canonical form, with the same digest. It names its images by their hashes."""
    content = message.get("content")
    parts = enumerate(content) if isinstance(content, Sequence) and not isinstance(content, str) else ()
    images = [(0, at, str(part["hash"])) for at, part in parts if part.get("type") == "image"]
    (canonical,) = canonicalise([message], images)
    return canonical


def _read_reply(
    step: Step,
    path: Sequence[TrajectoryNode],
    tools: Sequence[Mapping[str, Any]] | None,
    renderers: RendererPool | None,
) -> Reply:
    answer = path[-1]
    tool_calls = tuple(_recorded_calls(answer.message))
    message, text = _reply_message(answer.message), str(answer.message["content"])
    if renderers is not None:
        opening = LogicalIds(answer.run.ids[: answer.run.sampled_from])
        # If there is no generation prompt, the answer continues a turn that an earlier message began.
        prefix = opening if len(opening) else concat_ids(*(node.run.ids for node in path[:-1]))
        parsed = renderers.parse(prefix, LogicalIds(answer.run.ids[answer.run.sampled_from :]), tools)
        parsed_message, parsed_calls = build_assistant_message(parsed, step.turn)
        if _canonical(parsed_message).digest == _canonical(answer.message).digest:
            message, text, tool_calls = parsed_message, parsed.text, parsed_calls
    return Reply(
        message=message,
        text=text,
        finish_reason=step.finish_reason,
        tool_calls=tool_calls,
        prompt_tokens=step.prompt_length,
        completion_tokens=len(answer.run.logprobs),
        turn=step.turn,
    )


def _reply_message(recorded: Message) -> Message:
    """Return the message of a reply from its record, which has the arguments of tool calls as objects."""
    if "tool_calls" not in recorded:
        return dict(recorded)
    calls = [
        {**call, "function": {**call["function"], "arguments": write_arguments(call["function"]["arguments"])}}
        for call in recorded["tool_calls"]
    ]
    return {**recorded, "tool_calls": calls}


def _recorded_calls(message: Message) -> Iterator[ToolCall]:
    for call in message.get("tool_calls") or ():
        function = call["function"]
        raw = orjson.dumps({"name": function["name"], "arguments": function["arguments"]}).decode()
        yield ToolCall(str(call["id"]), str(function["name"]), copy.deepcopy(function["arguments"]), raw)
