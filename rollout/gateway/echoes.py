"""Recognises the policy's answers when a client sends them back, and gives the session the messages that it knows.

A client sends the whole conversation with every request, in new objects, and often in another form than it got it. The
tree of an endpoint has a node for each message at each place. A request is a walk from the root, with one look-up for
each message. The nodes keep the messages for the session, so the same conversation always gives the same objects.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rollout.gateway.call_ids import CallIds, CallNames, call_ids, with_call
from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import digest_form, incoming_message, merge_messages, normal_calls
from rollout.gateway.foreign import ForeignReason, smallest_difference
from rollout.records.conversations import Echo
from rollout.records.messages import Message, MessageError

__all__ = ["ConversationTree", "EchoMode", "ForeignReason", "Resolved"]

_MAX_MERGED = 8
"""The maximum number of assistant messages in a row that are tried as the parts of one answer."""
_MAX_KNOWN_MERGES = 4096


class EchoMode(StrEnum):
    """How much an echo may differ from the answer as it was sent.

    Attributes:
        TOLERANT: what does not change the meaning may differ, see `rollout.gateway.dialects.normal_form`.
        EXACT: nothing may differ.
    """

    TOLERANT = "tolerant"
    EXACT = "exact"


@dataclass(slots=True, eq=False)
class _Node:
    """A message at its place in a conversation.

    Attributes:
        message: the message for the session.
        call_ids: the ids of its tool calls.
        turn: the turn, if it is an answer of the policy.
        sent: the answer as the client got it; None if it is no answer.
        foreign_reason: why it is foreign, if it is an assistant message and no answer.
        children: the messages that follow, but not the answers.
        answers: the answers that follow, oldest first, by their exact key and by their key.
        answers_without_text: those of them that have text and calls, by the key that they have without their text.
    """

    message: Message
    call_ids: tuple[Any, ...] = ()
    turn: int | None = None
    sent: IncomingMessage | None = None
    foreign_reason: ForeignReason | None = None
    children: dict[Any, "_Node"] = field(default_factory=dict)
    answers: dict[bytes, list["_Node"]] = field(default_factory=dict)
    answers_without_text: dict[bytes, list["_Node"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The conversation of a request, as the session knows it.

    Attributes:
        messages: the messages for the session. A message that an earlier request had at the same place is the same
            object.
        echo: FOREIGN if a foreign message follows the last answer that was recognised; otherwise the worst echo of the
            answers. None if there is no assistant message.
        foreign_reason: why the first of these foreign messages was not recognised; None if the echo is not FOREIGN.
        echoed_turns: the turns whose answers were recognised, in order.
    """

    messages: list[Message]
    echo: Echo | None
    foreign_reason: ForeignReason | None
    echoed_turns: tuple[int, ...]
    _last: _Node = field(repr=False)
    _tools_key: bytes = field(repr=False)


class ConversationTree:
    """The conversations of one endpoint, by their tools.

    Usage::

        resolved = tree.resolve(request.messages, tools_key)
        reply = await session.play_turn(resolved.messages, …)
        tree.add_answer(resolved, sent, reply.message, reply.turn)
    """

    def __init__(self, mode: EchoMode) -> None:
        """Make a tree without conversations."""
        self._tolerant = mode is not EchoMode.EXACT
        self._roots: dict[bytes, _Node] = {}
        self._tools_of_answers: dict[bytes, set[bytes]] = {}
        self._merges: dict[tuple[bytes, ...], IncomingMessage] = {}

    def resolve(self, messages: Sequence[IncomingMessage], tools_key: bytes) -> Resolved:
        """Return the messages for the session, and which of them are answers of the policy.

        Messages that are new at their place are added at once, so that a second request during the answer to the first
        one gets the same objects.

        Args:
            messages: the whole conversation of the request.
            tools_key: a digest of its tools. Answers are recognised only under the tools that they were given under.

        Raises:
            MessageError: the result of a tool belongs to no call before it.
        """
        node = self._roots.get(tools_key)
        if node is None:
            node = self._roots[tools_key] = _Node({})
        ids, names = CallIds(), CallNames()
        path: list[_Node] = []
        resolved: list[Message] = []
        echo: Echo | None = None
        first_foreign: _Node | None = None
        is_normalised = False
        at, count = 0, len(messages)
        while at < count:
            incoming = messages[at]
            role = incoming.message["role"]
            if role == "assistant":
                answer, taken, exact = self._find_answer(node, messages, at, ids)
                if answer is not None:
                    is_normalised = is_normalised or not exact
                    echo = Echo.NORMALISED if is_normalised else Echo.EXACT
                    first_foreign = None
                    ids.map_calls(messages[at : at + taken], answer.call_ids)
                    node = answer
                else:
                    known_node = self._find_foreign(node, incoming)
                    node = known_node or self._add_foreign(node, messages, at, tools_key)
                    first_foreign = first_foreign or node
                    echo = Echo.FOREIGN
                    ids.map_calls((incoming,), node.call_ids)
                at += taken
            else:
                key, call_id = incoming.key, None
                child_key: Any = key
                if role == "tool":
                    call_id = ids.take(incoming.message.get("tool_call_id"))
                    child_key = (key, call_id)
                child = node.children.get(child_key)
                if child is None:
                    message = incoming.message
                    if role == "tool":
                        # The path says which call it is, so a known node has its name already.
                        name = names.find(call_id, resolved)
                        if name is None:
                            raise _no_call(at, incoming.message.get("tool_call_id"))
                        message = with_call(message, call_id, name)
                    child = node.children[child_key] = _Node(message)
                node = child
                at += 1
            path.append(node)
            resolved.append(node.message)
        return Resolved(
            resolved,
            echo,
            None if first_foreign is None else first_foreign.foreign_reason,
            tuple([step.turn for step in path if step.turn is not None]),
            node,
            tools_key,
        )

    def add_answer(self, resolved: Resolved, sent: IncomingMessage, message: Message, turn: int | None) -> None:
        """Add an answer to a request, so that its echo is recognised.

        Args:
            resolved: the request.
            sent: the message that the dialect reads from an exact echo of the answer.
            message: the message for the session in place of an echo.
            turn: the turn of the answer; None for a text of the gateway, which was not sampled.
        """
        place = resolved._last
        if turn is None and any(known.turn is None for known in place.answers.get(sent.exact_key, ())):
            return
        answer = _Node(message, call_ids(message), turn, sent)
        for key in {sent.exact_key, sent.key}:
            place.answers.setdefault(key, []).append(answer)
        self._tools_of_answers.setdefault(sent.key, set()).add(resolved._tools_key)
        calls = sent.message.get("tool_calls")
        if calls and sent.message.get("content"):
            key = digest_form(["assistant", "", normal_calls(calls)])
            place.answers_without_text.setdefault(key, []).append(answer)
            self._tools_of_answers.setdefault(key, set()).add(resolved._tools_key)

    def _find_answer(
        self, node: _Node, messages: Sequence[IncomingMessage], at: int, ids: CallIds
    ) -> tuple[_Node | None, int, bool]:
        """Return the answer that begins at a message, the number of messages that it takes, and if they are exact.

        Without an answer, the number is one.
        """
        if not node.answers:
            return None, 1, False
        exact = node.answers.get(messages[at].exact_key)
        if exact is not None:
            return (exact[0] if len(exact) == 1 else self._choose(exact, messages, at, at + 1, ids)), 1, True
        if self._tolerant:
            for taken, echo in _possible_echoes(messages, at, self._merge):
                answers = _known_form(node, echo)
                if len(answers) > 1:
                    answers = _nearest_answers(answers, echo)
                    return self._choose(answers, messages, at, at + taken, ids), taken, False
                if answers:
                    return answers[0], taken, False
        return None, 1, False

    def _merge(self, parts: Sequence[IncomingMessage]) -> IncomingMessage:
        """Return one message for several; known ones are found by their keys, because they come back at every turn."""
        keys = tuple([part.exact_key for part in parts])
        merged = self._merges.get(keys)
        if merged is None:
            if len(self._merges) >= _MAX_KNOWN_MERGES:
                self._merges.clear()
            merged = self._merges[keys] = _merge(parts)
        return merged

    def _choose(
        self, answers: Sequence[_Node], messages: Sequence[IncomingMessage], at: int, then: int, ids: CallIds
    ) -> _Node:
        """Return the answer after which the next messages are known, or the newest one if that leaves several.

        All answers are followed side by side, so a dead end costs one step and not the rest of the conversation.
        """
        paths = [(answer, answer, ids.after(messages[at:then], answer.call_ids)) for answer in answers]
        for next_at in range(then, len(messages)):
            if all(answer is paths[0][0] for answer, _, _ in paths):
                break
            longer = [
                (answer, child, next_ids)
                for answer, node, known_ids in paths
                for child, next_ids in self._known_children(node, messages[next_at], known_ids)
            ]
            if not longer:
                break
            paths = longer
        return paths[-1][0]

    def _known_children(self, node: _Node, incoming: IncomingMessage, ids: CallIds) -> Iterator[tuple[_Node, CallIds]]:
        """Yield the known nodes for a message that follows a node, oldest first, each with the ids after it."""
        role = incoming.message["role"]
        if role == "assistant":
            answers = node.answers.get(incoming.exact_key) or (_known_form(node, incoming) if self._tolerant else ())
            foreign = self._find_foreign(node, incoming)
            for child in (*([foreign] if foreign else ()), *answers):
                yield child, ids.after((incoming,), child.call_ids)
            return
        key: Any = incoming.key
        if role == "tool":
            ids = ids.copy()
            key = (key, ids.take(incoming.message.get("tool_call_id")))
        if (known := node.children.get(key)) is not None:
            yield known, ids

    def _find_foreign(self, node: _Node, incoming: IncomingMessage) -> _Node | None:
        """Return the node of a foreign message that an earlier request had after `node`."""
        return node.children.get(_foreign_key(incoming))

    def _add_foreign(self, node: _Node, messages: Sequence[IncomingMessage], at: int, tools_key: bytes) -> _Node:
        """Add a foreign assistant message after `node`."""
        incoming = messages[at]
        reason = self._foreign_reason(node, messages, at, tools_key)
        foreign = _Node(incoming.message, call_ids(incoming.message), foreign_reason=reason)
        node.children[_foreign_key(incoming)] = foreign
        return foreign

    def _foreign_reason(
        self, node: _Node, messages: Sequence[IncomingMessage], at: int, tools_key: bytes
    ) -> ForeignReason:
        echoes = [echo for _, echo in _possible_echoes(messages, at, _merge)]
        if any(_known_form(node, echo) for echo in echoes):
            return ForeignReason.NOT_EXACT
        under_tools = [self._tools_of_answers[echo.key] for echo in echoes if echo.key in self._tools_of_answers]
        if under_tools:
            return ForeignReason.HISTORY if any(tools_key in keys for keys in under_tools) else ForeignReason.TOOLS
        if not node.answers:
            return ForeignReason.INSERTED
        sent = {id(known): known.sent.message for known in _all_answers(node) if known.sent is not None}
        reason = smallest_difference([echo.message for echo in echoes], list(sent.values()))
        if reason is ForeignReason.ARGUMENTS:
            return reason
        # If the answer comes later, this message was put before it.
        return ForeignReason.INSERTED if any(_known_form(node, later) for later in messages[at + 1 :]) else reason


def _no_call(index: int, call_id: Any) -> MessageError:
    return MessageError(
        f"messages[{index}] is the result of the tool call {str(call_id)[:100]!r}, but no message before it has a call "
        "with this id. Send the message with the call, too, or correct the id."
    )


def _possible_echoes(
    messages: Sequence[IncomingMessage], at: int, merge: Callable[[Sequence[IncomingMessage]], IncomingMessage]
) -> Iterable[tuple[int, IncomingMessage]]:
    """Return what can be the echo of one answer from `at`: several assistant messages in a row, or the first alone.

    Some clients send the reasoning or the text of an answer as a message before that with the calls.

    Returns:
        The number of messages and their merged form, longest first.
    """
    end = at + 1
    while end < len(messages) and end - at < _MAX_MERGED and messages[end].message["role"] == "assistant":
        end += 1
    alone = (1, messages[at])
    if end == at + 1:
        return (alone,)
    # A generator, because merging costs a digest of each form.
    return ((last - at, merge(messages[at:last])) if last > at + 1 else alone for last in range(end, at, -1))


def _merge(parts: Sequence[IncomingMessage]) -> IncomingMessage:
    return incoming_message(merge_messages([part.message for part in parts]))


def _known_form(node: _Node, echo: IncomingMessage) -> list[_Node]:
    """Return the answers after a node that have the same normal form as an echo, also if it lacks their text."""
    return node.answers.get(echo.key) or node.answers_without_text.get(echo.key) or []


def _nearest_answers(answers: list[_Node], echo: IncomingMessage) -> list[_Node]:
    """Return those of several answers with the same normal form that also have the ids or the reasoning of an echo."""
    tests: tuple[Callable[[Message], Any], ...] = (call_ids, lambda message: message.get("reasoning_content"))
    for test in tests:
        if len(answers) > 1 and (wanted := test(echo.message)):
            answers = [known for known in answers if known.sent and test(known.sent.message) == wanted] or answers
    return answers


def _all_answers(node: _Node) -> Iterator[_Node]:
    return (answer for answers in node.answers.values() for answer in answers)


def _foreign_key(incoming: IncomingMessage) -> tuple[str, bytes, str]:
    """Return the key of a foreign message. Other reasoning makes another message, because it is in the prompt."""
    return "foreign", incoming.key, incoming.message.get("reasoning_content") or ""
