"""A session that notes each turn: what the program sent, what it got, and how the prompt was made."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.doctor.agent.script import AgentScript
from rollout.doctor.agent.scripted_client import question_of_turn
from rollout.records.call_arguments import write_arguments
from rollout.records.conversations import Echo
from rollout.records.kinds import PromptSource
from rollout.records.messages import Message
from rollout.records.stream import RolloutStream
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from rollout.session.turns import SessionTurn


@dataclass(frozen=True, slots=True)
class SentCall:
    """A tool call as a program gets it.

    Attributes:
        id: its id.
        name: the name of the tool.
        arguments: the arguments.
        text: the arguments as the gateway writes them.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class ObservedTurn:
    """A turn that was played.

    Attributes:
        number: its number in the rollout.
        messages: the conversation of the request, as the session knows it.
        tool_names: the names of the tools.
        echo: how earlier answers came back; None if the conversation has none.
        source: how the tokens of the prompt were made.
        root: the root of the conversation.
        prompt_tokens: the number of tokens in the prompt.
        text: the text of the answer.
        reasoning: the reasoning of the answer.
        calls: the calls of the answer.
    """

    number: int
    messages: tuple[Message, ...]
    tool_names: tuple[str, ...]
    echo: Echo | None
    source: PromptSource
    root: int
    prompt_tokens: int
    text: str
    reasoning: str
    calls: tuple[SentCall, ...]


class ObservedSession(Session):
    """A session whose turns are answered by the script.

    Attributes:
        turns: the turns, in the order in which they ended.
    """

    def __init__(self, policy: PolicyClient, stream: RolloutStream, script: AgentScript) -> None:
        super().__init__(policy, stream)
        self.turns: list[ObservedTurn] = []
        self._script = script

    async def play_turn(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
        **options: Any,
    ) -> SessionTurn:
        """See `Session.play_turn`."""
        sent = tuple(copy.deepcopy(messages))
        with question_of_turn(sent, tools):
            turn = await super().play_turn(messages, tools=tools, sampling=sampling, **options)
        observed = _observe(turn, sent, tools, options.get("echo"))
        self._script.call_ids.update(call.id for call in observed.calls)
        self.turns.append(observed)
        return turn


def _observe(
    turn: SessionTurn, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]] | None, echo: Echo | None
) -> ObservedTurn:
    message = turn.reply.message
    calls = (
        SentCall(call.id, call.name, call.arguments, write_arguments(call.arguments))
        for call in turn.reply.tool_calls
        if call.error is None
    )
    return ObservedTurn(
        number=turn.reply.turn,
        messages=messages,
        tool_names=tuple(str(tool["function"]["name"]) for tool in tools or ()),
        echo=echo,
        source=turn.prompt_source,
        root=turn.root,
        prompt_tokens=turn.reply.prompt_tokens,
        text=str(message.get("content") or ""),
        reasoning=str(message.get("reasoning_content") or ""),
        calls=tuple(calls),
    )
