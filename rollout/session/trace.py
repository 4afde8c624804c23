"""The message graph of one rollout: a node for each message, with the tokens that the message adds.

A conversation is a path from a root. Turns that extend each other share their whole path. A conversation that was cut,
compacted or forked shares the prefix in which messages and tokens are the same, and branches off where they differ.
Nodes are only added and never changed, so an index always names the same node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import TokenRun
from rollout.records.kinds import ROOT, MessageTokens
from rollout.records.messages import CanonicalMessage

DigestedMessage = tuple[bytes, MessageTokens]
"""The `CanonicalMessage.digest` of a message, by which the trace finds it, and the message with its tokens."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The part of a conversation that the trace already contains.

    Attributes:
        last_answer_index: the node up to which the tokens are certain, because the policy sampled it; ROOT if none.
        answered_messages: how many of the first messages the path to this node has; 0 if there is none.
        matched_messages: how many of the first messages are known, in this order.
    """

    last_answer_index: int
    answered_messages: int
    matched_messages: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one turn added to the graph.

    Attributes:
        nodes: the messages of the new nodes; each node is the child of the one before it, and the last is the answer.
        first: the index of the first new node; the others have the next indices.
        parent: the parent of the first new node, or ROOT.
    """

    nodes: tuple[MessageTokens, ...]
    first: int
    parent: int

    @property
    def leaf(self) -> int:
        """The index of the last new node."""
        return self.first + len(self.nodes) - 1


class _TrieNode:
    """The end of one sequence of messages: the nodes at its end, and those of them that the policy sampled.

    There may be several nodes, because the same messages may have different tokens, or several answers.
    """

    __slots__ = ("answers", "children", "nodes")

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.answers: list[int] = []
        self.children: dict[bytes, _TrieNode] = {}


@dataclass(frozen=True, slots=True)
class TraceNode:
    """A message in the graph.

    Attributes:
        tokens: the message and its tokens.
        parent: the index of the node before it, or ROOT.
        last_answer_index: the last node up to here that the policy sampled in this rollout; ROOT if there is none.
        trie_node: where the sequence of messages up to here ends in the trie.
    """

    tokens: MessageTokens
    parent: int
    last_answer_index: int
    trie_node: _TrieNode


class Trace:
    """The graph of one rollout. The tools belong to the root: the same messages with other tools are another tree.

    Attributes:
        nodes: all nodes; the index of a node is its position here.
    """

    def __init__(self) -> None:
        self.nodes: list[TraceNode] = []
        self._trie_roots: dict[bytes, _TrieNode] = {}

    def match_prefix(self, messages: Sequence[CanonicalMessage], tools_digest: bytes) -> PrefixMatch:
        """Find how much of a conversation is known, message by message.

        If the same messages have several answers, one that more of the conversation follows is preferred, then the
        newest.
        """
        trie_node, last_answered, answered, matched = self._trie_roots.get(tools_digest), None, 0, 0
        if trie_node is None:
            return PrefixMatch(ROOT, 0, 0)
        for message in messages:
            child = trie_node.children.get(message.digest)
            if child is None:
                break
            trie_node, matched = child, matched + 1
            if trie_node.answers:
                last_answered, answered = trie_node, matched
        if last_answered is None:
            return PrefixMatch(ROOT, 0, matched)
        continuing = [
            answer
            for node in trie_node.nodes
            if (answer := self.nodes[node].last_answer_index) in last_answered.answers
        ]
        return PrefixMatch((continuing or last_answered.answers)[-1], answered, matched)

    def path_runs(self, leaf: int) -> list[TokenRun]:
        """Return the tokens of each message from a root to `leaf`."""
        runs: list[TokenRun] = []
        while leaf != ROOT:
            node = self.nodes[leaf]
            runs.append(node.tokens.run)
            leaf = node.parent
        return runs[::-1]

    def commit(
        self, base_node: int, prompt_messages: Sequence[DigestedMessage], answer: DigestedMessage, tools_digest: bytes
    ) -> Commit:
        """Add a turn below `base_node`: its new messages, then the policy's answer.

        A message that is already there with the same tokens is used again, even if a parallel turn added it. An answer
        is always a new node, because it was sampled again.
        """
        first, parent, leaf = len(self.nodes), base_node, base_node
        for digest, tokens in prompt_messages:
            trie_node = self._trie_node(leaf, digest, tools_digest)
            known_node = self._find_same_node(trie_node, leaf, tokens.run)
            if known_node is None:
                leaf = self._add_node(trie_node, leaf, tokens)
            else:
                parent = leaf = known_node  # what comes before the first new node is known
        answer_digest, answer_tokens = answer
        self._add_node(self._trie_node(leaf, answer_digest, tools_digest), leaf, answer_tokens)
        return Commit(tuple(node.tokens for node in self.nodes[first:]), first, parent)

    def _find_same_node(self, trie_node: _TrieNode, parent: int, run: TokenRun) -> int | None:
        for index in trie_node.nodes:
            node = self.nodes[index]
            if node.parent == parent and same_tokens(node.tokens.run, run):
                return index
        return None

    def _add_node(self, trie_node: _TrieNode, parent: int, tokens: MessageTokens) -> int:
        index, last_answer_index = len(self.nodes), ROOT if parent == ROOT else self.nodes[parent].last_answer_index
        trie_node.nodes.append(index)
        if tokens.sampled:
            trie_node.answers.append(index)
            last_answer_index = index
        self.nodes.append(TraceNode(tokens, parent, last_answer_index, trie_node))
        return index

    def _trie_node(self, parent: int, digest: bytes, tools_digest: bytes) -> _TrieNode:
        parent_trie_node = (
            self._trie_roots.setdefault(tools_digest, _TrieNode()) if parent == ROOT else self.nodes[parent].trie_node
        )
        return parent_trie_node.children.setdefault(digest, _TrieNode())


def same_tokens(first: TokenRun, second: TokenRun) -> bool:
    """Return whether two messages have the same tokens and images; only then can turns share them."""
    return first.images == second.images and np.array_equal(first.ids, second.ids)
