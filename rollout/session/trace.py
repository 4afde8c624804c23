"""The message graph of one rollout: a node per message, holding the tokens that message adds.

A conversation is a path from a root. Turns that extend each other share their whole path. A conversation that was cut,
compacted or forked shares the prefix that is still the same, message by message and token by token, and branches off
where it differs. Nodes are only added and never changed, so an index always names the same node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import TokenRun
from rollout.records.messages import CanonicalMessage

ROOT = -1


@dataclass(frozen=True, slots=True)
class DraftNode:
    """A message with its tokens, not yet in the graph.

    Attributes:
        message: the message in canonical form.
        run: the tokens that it adds.
        content: the spans of these tokens that are the message's own content, not the template's; none for an answer.
    """

    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A message in the graph.

    Attributes:
        index: the index of the node.
        parent: the node before it, or ROOT.
        message: the message in canonical form.
        run: the tokens that it adds.
        content: the spans of these tokens that are the message's own content, not the template's; none for an answer.
        depth: how many nodes come before it on its path.
        last_answer_index: the last node up to here that the policy sampled in this rollout; ROOT if there is none.
    """

    index: int
    parent: int
    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...]
    depth: int
    last_answer_index: int

    @property
    def sampled(self) -> bool:
        """Whether the policy wrote this message in this rollout."""
        return self.last_answer_index == self.index


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Which part of a conversation the trace already contains.

    Attributes:
        last_answer_index: the node up to which the tokens are certain, because the policy sampled it; ROOT if none.
        matched_messages: how many of the first messages are known, in this order.
    """

    last_answer_index: int
    matched_messages: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one turn added to the graph.

    Attributes:
        nodes: the new nodes; each is the child of the one before it.
        parent: the parent of the first new node, or ROOT.
        leaf: the last new node, which is the answer.
    """

    nodes: tuple[Node, ...]
    parent: int
    leaf: int


class _TrieNode:
    """The end of one sequence of messages: the nodes at which it ends, and those of them that the policy sampled.

    There may be several nodes, because the same messages may have different tokens, or several answers.
    """

    __slots__ = ("answers", "children", "nodes")

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.answers: list[int] = []
        self.children: dict[bytes, _TrieNode] = {}


class Trace:
    """The graph of one rollout. The tools belong to the root: the same messages with other tools are another tree."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._trie_nodes: list[_TrieNode] = []
        self._trie_roots: dict[bytes, _TrieNode] = {}

    def match_prefix(self, messages: Sequence[CanonicalMessage], tools_digest: bytes) -> PrefixMatch:
        """Find how much of a conversation is known, message by message.

        Among several answers to the same messages, one that more of the conversation follows is preferred, then the
        newest one.
        """
        trie_node, last_answered, matched = self._trie_roots.get(tools_digest), None, 0
        if trie_node is None:
            return PrefixMatch(ROOT, 0)
        for message in messages:
            child = trie_node.children.get(message.digest)
            if child is None:
                break
            trie_node, matched = child, matched + 1
            if trie_node.answers:
                last_answered = trie_node
        if last_answered is None:
            return PrefixMatch(ROOT, matched)
        continuing = [node for node in trie_node.nodes if self.nodes[node].last_answer_index in last_answered.answers]
        return PrefixMatch(
            self.nodes[continuing[-1]].last_answer_index if continuing else last_answered.answers[-1], matched
        )

    def path(self, leaf: int) -> list[Node]:
        """Return the nodes from a root to `leaf`."""
        nodes: list[Node] = []
        while leaf != ROOT:
            nodes.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return nodes[::-1]

    def commit(
        self, base_node: int, prompt_drafts: Sequence[DraftNode], answer: DraftNode, tools_digest: bytes
    ) -> Commit:
        """Add a turn below `base_node`: its new messages, then the policy's answer.

        A message that is already there with the same tokens is used again, even if a parallel turn added it. An answer
        is always a new node, because it was sampled again.
        """
        parent, new_nodes = base_node, list[Node]()
        for draft in prompt_drafts:
            node = self._find_same_node(parent, draft, tools_digest)
            if node is None:
                node = self._add_node(parent, draft, tools_digest)
                new_nodes.append(node)
            parent = node.index
        new_nodes.append(self._add_node(parent, answer, tools_digest))
        return Commit(tuple(new_nodes), new_nodes[0].parent, new_nodes[-1].index)

    def _find_same_node(self, parent: int, draft: DraftNode, tools_digest: bytes) -> Node | None:
        for index in self._trie_node(parent, draft, tools_digest).nodes:
            node = self.nodes[index]
            if node.parent == parent and same_tokens(node.run, draft.run):
                return node
        return None

    def _add_node(self, parent: int, draft: DraftNode, tools_digest: bytes) -> Node:
        index, parent_node = len(self.nodes), None if parent == ROOT else self.nodes[parent]
        sampled = draft.run.sampled_from < len(draft.run.ids)
        node = Node(
            index=index,
            parent=parent,
            message=draft.message,
            run=draft.run,
            content=draft.content,
            depth=parent_node.depth + 1 if parent_node else 0,
            last_answer_index=index if sampled else parent_node.last_answer_index if parent_node else ROOT,
        )
        trie_node = self._trie_node(parent, draft, tools_digest)
        trie_node.nodes.append(index)
        if sampled:
            trie_node.answers.append(index)
        self.nodes.append(node)
        self._trie_nodes.append(trie_node)
        return node

    def _trie_node(self, parent: int, draft: DraftNode, tools_digest: bytes) -> _TrieNode:
        parent_trie_node = (
            self._trie_roots.setdefault(tools_digest, _TrieNode()) if parent == ROOT else self._trie_nodes[parent]
        )
        return parent_trie_node.children.setdefault(draft.message.digest, _TrieNode())


def same_tokens(first: TokenRun, second: TokenRun) -> bool:
    """Return whether two messages have the same tokens and images; only then can turns share them."""
    return first.images == second.images and np.array_equal(first.ids, second.ids)
