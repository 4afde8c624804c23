"""A model that repeats the answers of a recorded rollout, as long as the environment sends the same messages."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rollout.config.sampling import check_sampling
from rollout.environments.base import ContextExhausted, Reply
from rollout.environments.endpoint import EndpointSocket, EndpointUnavailable, RootRule
from rollout.images import ImagePolicy, prepare_images_async
from rollout.records.endings import RolloutLimit
from rollout.records.messages import (
    CanonicalMessage,
    FinishReason,
    Message,
    canonicalise,
    digest_tools,
    require_bounded,
    require_conversation,
)
from rollout.records.stream import RolloutAlreadyFinished
from rollout.records.tools import require_tools
from rollout.rundir.artifacts import create_attempt_directory
from rollout.session.chat_arguments import refuse_arguments
from rollout.session.chat_calls import ChatCalls
from rollout.testing.recorded_turns import RecordedTurn
from rollout.testing.replay_report import Difference, compare_messages, compare_tools
from rollout.value_limits import TooMuchTextError


@dataclass(frozen=True, slots=True)
class RecordedEnd:
    """How a recorded rollout ended.

    Attributes:
        description: the end in words.
        limit: the limit that stopped the rollout.
        from_outside: whether the rollout was ended by a time limit, an engine or a worker, not by the environment.
    """

    description: str
    limit: RolloutLimit
    from_outside: bool


class RecordedModel:
    """The `Model` of one attempt of a replay. After `stopped` is set, no call of `chat` returns.

    Attributes:
        stopped: set at the first difference, or if the environment continues after the last turn of a rollout that was
            ended from outside.
        difference: the first difference from the record.
        played_turns: the numbers of the recorded turns that the environment played again.
        last_limit: the limit that ended the latest answer.
        asked_for_endpoint: whether the environment wanted to play a program.
    """

    def __init__(self, turns: Sequence[RecordedTurn], end: RecordedEnd, image_policy: ImagePolicy) -> None:
        self._unplayed = list(turns)
        self._recorded_numbers = {recorded.turn for recorded in turns}
        self._end = end
        self._image_policy = image_policy
        self._calls = ChatCalls()
        self._refusal: str | None = None
        self._next_turn = 0
        self.stopped = asyncio.Event()
        self.difference: Difference | None = None
        self.played_turns: set[int] = set()
        self.last_limit = RolloutLimit.NONE
        self.asked_for_endpoint = False

    @property
    def unplayed_turns(self) -> list[int]:
        """The numbers of the recorded turns that the environment has not played again yet."""
        return [recorded.turn for recorded in self._unplayed]

    def close_unawaited_calls(self) -> int:
        """Close the calls of `chat` that were never awaited, and return their number."""
        return self._calls.close_unawaited()

    def refuse_calls(self, reason: str = "one of its turns was interrupted") -> None:
        """Refuse all later calls, with this reason."""
        self._refusal = self._refusal or reason

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
        **unknown: object,
    ) -> Coroutine[Any, Any, Reply]:
        """Return the recorded answer to a conversation; see `rollout.environments.base.Model.chat`."""
        refuse_arguments(unknown)
        return self._calls.add(self._chat(messages, tools, sampling))

    def endpoint(
        self,
        *,
        root_kinds: RootRule | None = None,
        socket: EndpointSocket | None = None,
        accept_reward: bool = False,
    ) -> NoReturn:
        """Refuse to open an endpoint, because a program is not repeated by its recorded answers."""
        self.asked_for_endpoint = True
        raise EndpointUnavailable(
            "a replay cannot repeat an agent program, so model.endpoint() cannot be used in it; play the rollout again "
            "with `rollout run`."
        )

    def artifacts_directory(self) -> Path:
        """Return a temporary directory, because a replay must not change the files of the recorded run."""
        return create_attempt_directory(Path(self._image_policy.directory) / "artifacts", "replay", 1)

    async def _chat(
        self, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None, sampling: Mapping[str, Any] | None
    ) -> Reply:
        if self._refusal is not None:
            raise RolloutAlreadyFinished(f"this rollout cannot continue: {self._refusal}")
        turn, self._next_turn = self._next_turn, self._next_turn + 1
        require_conversation(messages)
        require_tools(tools, "chat(tools=…)")
        if sampling is not None:
            check_sampling(sampling)
        conversation = await self._prepare(messages)
        tools_digest = digest_tools(tools)
        found = next((one for one in self._unplayed if one.has_conversation(conversation, tools_digest)), None)
        if found is not None:
            self._unplayed.remove(found)
            self.played_turns.add(found.turn)
            self.last_limit = self._limit_of(found)
            return found.reply
        if self._was_too_long(turn):
            self.last_limit = RolloutLimit.CONTEXT
            raise ContextExhausted("in the record, the conversation was too long for the model's context at this turn.")
        if self._unplayed:
            self.difference = self._describe_difference(conversation, tools, tools_digest)
        elif not self._end.from_outside:
            text = f"the environment asks for another answer, but the recorded rollout ended: {self._end.description}"
            self.difference = Difference("turns", turn, text)
        return await self._stop()

    async def _prepare(self, messages: list[Message]) -> list[CanonicalMessage]:
        try:
            require_bounded(messages)
        except TooMuchTextError as error:
            raise ContextExhausted(f"the conversation {error}, which is too long for every model's context.") from None
        report = await prepare_images_async(messages, self._image_policy)
        return canonicalise(messages, report.image_positions)

    def _was_too_long(self, turn: int) -> bool:
        """Whether the recorded turn of this number got no answer because the context was full.

        If a turn between others has no record, the environment caught an error in it. Almost only a full context is
        such an error, because most engine errors end a rollout.
        """
        later_turns = any(number > turn for number in self._recorded_numbers)
        is_unanswered = turn not in self._recorded_numbers
        return is_unanswered and (later_turns or self._end.limit is RolloutLimit.CONTEXT)

    def _limit_of(self, recorded: RecordedTurn) -> RolloutLimit:
        """Return the limit that ended a recorded answer.

        The record says only for the last answer whether it filled the context.
        """
        if recorded.reply.finish_reason is not FinishReason.LENGTH:
            return RolloutLimit.NONE
        return RolloutLimit.CONTEXT if self._end.limit is RolloutLimit.CONTEXT else RolloutLimit.TOKENS

    def _describe_difference(
        self, conversation: Sequence[CanonicalMessage], tools: Sequence[Any] | None, tools_digest: bytes
    ) -> Difference:
        """Return the difference between a conversation and the most similar recorded one."""
        nearest = max(self._unplayed, key=lambda one: (one.common_length(conversation), -one.turn))
        if nearest.tools_digest != tools_digest:
            return compare_tools(nearest.turn, nearest.tools, tools)
        return compare_messages(
            nearest.turn,
            [message.message for message in nearest.conversation],
            [message.message for message in conversation],
            nearest.common_length(conversation),
        )

    async def _stop(self) -> NoReturn:
        """Stop the replay, and wait until it cancels the environment."""
        self.stopped.set()
        while True:
            await asyncio.Event().wait()


RecordedModel._chat.__qualname__ = "model.chat"
"""The name by which environments call this method; Python shows it in its warning about a missing `await`."""
