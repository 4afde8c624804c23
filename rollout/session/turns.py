"""Defines a turn of a session as the gateway plays it, and what the gateway needs of a session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from renderers_adapter.tokens import LogicalIds, Logprobs
from rollout.environments.base import Reply
from rollout.records.conversations import Echo, RootKind
from rollout.records.kinds import PromptSource
from rollout.records.messages import Message
from rollout.session.counters import SessionCounters


class TurnObserver(Protocol):
    """Is told about the progress of a turn."""

    async def on_prompt_ready(self) -> None:
        """The prompt is complete, so that only the engine can refuse the turn now. The turn waits for this call."""
        ...

    def on_commit(self, turn: int) -> None:
        """The turn is in the trace, and its step is on its way to the queue."""
        ...


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """A turn as it was played.

    Attributes:
        reply: the reply for the environment.
        root: the index of the node that begins the conversation.
        prompt_source: how the tokens of the prompt were made.
        cached_tokens: the number of prompt tokens that were in the engine's cache.
        token_ids: the sampled tokens.
        logprobs: the log-prob of each sampled token.
        stop_reason: the stop text or stop token that ended the answer; None if the engine reports none.
    """

    reply: Reply
    root: int
    prompt_source: PromptSource
    cached_tokens: int
    token_ids: LogicalIds
    logprobs: Logprobs
    stop_reason: str | int | None = None


class EndpointReport(Protocol):
    """What an endpoint knows at the end of a rollout."""

    def unreceived_turns(self) -> Sequence[int]:
        """Return the turns whose answer the program did not receive."""
        ...

    def root_kinds(self) -> Mapping[int, RootKind]:
        """Return the kind of each root, by the index of its first node."""
        ...


class EndpointSession(Protocol):
    """The session of an attempt, as an endpoint uses it; see `rollout.session.session.Session`."""

    counters: SessionCounters
    endpoint_reports: list[EndpointReport]

    @property
    def max_model_len(self) -> int | None:
        """The limit for the tokens of a prompt and its answer; None if it is unknown."""
        ...

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The sampling parameters of the YAML."""
        ...

    async def play_turn(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
        echo: Echo | None = None,
        constrained: bool = False,
        observer: TurnObserver | None = None,
    ) -> SessionTurn:
        """Play a turn."""
        ...

    async def count_prompt_tokens(self, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None) -> int:
        """Return the number of tokens of a prompt."""
        ...

    def decode_token(self, token_id: int) -> str:
        """Return the text of one token."""
        ...
