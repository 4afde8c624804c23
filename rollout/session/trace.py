"""The message graph of one rollout: a node per message, holding the tokens that message adds.

A conversation is a path from a root. Turns that extend each other share their whole path; a conversation that was cut,
compacted or forked shares the prefix that is still the same, message by message and token by token, and branches off
where it differs. Nothing is ever rewritten: nodes are only added, so an index is a name for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import TokenRun
from rollout.records.messages import CanonicalMessage

ROOT = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """A message with its tokens, not yet in the graph."""

    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A message in the graph; `parent` is the node before it, or ROOT.

    Attributes:
        depth: how many nodes come before it on its path.
        answer: the last node up to here that the policy sampled in this rollout, or ROOT where it sampled none.
    """

    index: int
    parent: int
    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...]
    depth: int
    answer: int

    @property
    def sampled(self) -> bool:
        """Whether the policy wrote this message in this rollout."""
        return self.answer == self.index


@dataclass(frozen=True, slots=True)
class Known:
    """What a rollout knows of a conversation.

    Attributes:
        answer: the node up to which its tokens are known for certain, because the policy sampled there; ROOT if none.
        messages: how many of its messages were said before, in this order.
    """

    answer: int
    messages: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one turn added to the graph: `nodes` hang from `parent`, the last of them is `leaf`."""

    nodes: tuple[Node, ...]
    parent: int
    leaf: int


class _Place:
    """Where a sequence of messages leads: the nodes that end one, and among them the answers of the policy.

    The same messages may have been said with other tokens, or answered several times, so that there are several nodes.
    """

    __slots__ = ("answers", "following", "nodes")

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.answers: list[int] = []
        self.following: dict[bytes, _Place] = {}


class Trace:
    """The graph of one rollout. Tools belong to a root: the same messages under other tools are another tree."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._places: list[_Place] = []
        self._roots: dict[bytes, _Place] = {}

    def match(self, messages: Sequence[CanonicalMessage], tools: bytes) -> Known:
        """How much of a conversation is known, message by message.

        Of several answers to the same messages, one that more of the conversation was said after is taken; then the
        youngest.
        """
        place, answered, length = self._roots.get(tools), None, 0
        if place is None:
            return Known(ROOT, 0)
        for message in messages:
            following = place.following.get(message.identity)
            if following is None:
                break
            place, length = following, length + 1
            if place.answers:
                answered = place
        if answered is None:
            return Known(ROOT, length)
        leading = [node for node in place.nodes if self.nodes[node].answer in answered.answers]
        return Known(self.nodes[leading[-1]].answer if leading else answered.answers[-1], length)

    def path(self, leaf: int) -> list[Node]:
        """The nodes from a root to `leaf`."""
        found: list[Node] = []
        while leaf != ROOT:
            found.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return found[::-1]

    def commit(self, base: int, context: Sequence[Draft], answer: Draft, tools: bytes) -> Commit:
        """Add a turn below `base`: its new messages, then what the policy answered.

        A message that is already there with the very same tokens is used again, also one that a turn running at the
        same time added first. An answer is always a node of its own: it was sampled once more.
        """
        at, added = base, list[Node]()
        for draft in context:
            known = self._find(at, draft, tools)
            if known is None:
                known = self._add(at, draft, tools)
                added.append(known)
            at = known.index
        added.append(self._add(at, answer, tools))
        return Commit(tuple(added), added[0].parent, added[-1].index)

    def _find(self, parent: int, draft: Draft, tools: bytes) -> Node | None:
        for index in self._place(parent, draft, tools).nodes:
            node = self.nodes[index]
            if node.parent == parent and same_tokens(node.run, draft.run):
                return node
        return None

    def _add(self, parent: int, draft: Draft, tools: bytes) -> Node:
        index, above = len(self.nodes), None if parent == ROOT else self.nodes[parent]
        sampled = draft.run.sampled_from < len(draft.run.ids)
        node = Node(
            index=index,
            parent=parent,
            message=draft.message,
            run=draft.run,
            content=draft.content,
            depth=above.depth + 1 if above else 0,
            answer=index if sampled else above.answer if above else ROOT,
        )
        place = self._place(parent, draft, tools)
        place.nodes.append(index)
        if sampled:
            place.answers.append(index)
        self.nodes.append(node)
        self._places.append(place)
        return node

    def _place(self, parent: int, draft: Draft, tools: bytes) -> _Place:
        above = self._roots.setdefault(tools, _Place()) if parent == ROOT else self._places[parent]
        return above.following.setdefault(draft.message.identity, _Place())


def same_tokens(one: TokenRun, other: TokenRun) -> bool:
    """Whether two messages are the same to the policy: message identity alone does not make a prefix shared."""
    return one.images == other.images and np.array_equal(one.ids, other.ids)
