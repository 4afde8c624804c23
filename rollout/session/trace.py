"""Keeps the messages of one rollout as a graph. Each node is a message with the tokens that the message adds.

The messages of a conversation are the nodes from a root to one node. If a turn extends an earlier one, both use the
same nodes. If a conversation was cut, compacted or forked, it uses the same nodes up to the first message or token that
differs. Nodes are only added and never changed, so an index always identifies the same node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import TokenRun
from rollout.records.kinds import ROOT, MessageTokens
from rollout.records.messages import CanonicalMessage

DigestedMessage = tuple[bytes, MessageTokens]
"""The digest that identifies a message in the trace (`CanonicalMessage.digest`), and the message with its tokens."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The part of a conversation that the trace already contains.

    Attributes:
        last_answer_index: the index of the last known answer of the policy. The tokens up to it are known. ROOT if no
            answer is known.
        answered_messages: the number of messages up to this answer, including it; 0 if no answer is known.
        matched_messages: the number of messages at the start of the conversation that the trace contains.
    """

    last_answer_index: int
    answered_messages: int
    matched_messages: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The nodes that one turn added to the graph.

    Attributes:
        nodes: the messages of the new nodes. Each node is the child of the node before it; the last is the answer.
        first: the index of the first new node; the other new nodes have the next indices.
        parent: the index of the first new node's parent, or ROOT.
    """

    nodes: tuple[MessageTokens, ...]
    first: int
    parent: int

    @property
    def leaf(self) -> int:
        """The index of the last new node."""
        return self.first + len(self.nodes) - 1


class _TrieNode:
    """Holds all nodes that end the same sequence of messages, and says which of them the policy sampled.

    There may be several nodes, because the same messages may have different tokens, or may have been sampled several
    times.
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
        parent: the index of the node of the previous message, or ROOT.
        root: the index of the node that begins the conversation.
        last_answer_index: the index of the last answer of the policy from the root to this node; ROOT if there is none.
        trie_node: the entry for the sequence of messages that ends with this node.
    """

    tokens: MessageTokens
    parent: int
    root: int
    last_answer_index: int
    trie_node: _TrieNode


class Trace:
    """The message graph of one rollout. Each set of tools has its own root, because tools change the first tokens.

    Attributes:
        nodes: all nodes; the index of a node is its position in this list.
    """

    def __init__(self) -> None:
        self.nodes: list[TraceNode] = []
        self._trie_roots: dict[bytes, _TrieNode] = {}

    def match_prefix(self, messages: Sequence[CanonicalMessage], tools_digest: bytes) -> PrefixMatch:
        """Return how much of a conversation the trace contains.

        If the last known answer exists several times, an answer that is followed by more of the conversation is
        preferred, and then the newest answer.
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

    def root_of(self, node: int) -> int:
        """Return the index of the node that begins the conversation of a node."""
        return self.nodes[node].root

    def path_runs(self, leaf: int) -> list[TokenRun]:
        """Return the tokens of each message from the root to the node `leaf`."""
        runs: list[TokenRun] = []
        while leaf != ROOT:
            node = self.nodes[leaf]
            runs.append(node.tokens.run)
            leaf = node.parent
        return runs[::-1]

    def commit(
        self, base_node: int, prompt_messages: Sequence[DigestedMessage], answer: DigestedMessage, tools_digest: bytes
    ) -> Commit:
        """Add the new messages of a turn below `base_node`, and then the policy's answer; return the new nodes.

        If the trace already has a message with the same tokens there, for example from a parallel turn, its node is
        used. An answer is always a new node, because it was sampled again.
        """
        first, parent, leaf = len(self.nodes), base_node, base_node
        for digest, tokens in prompt_messages:
            trie_node = self._trie_node(leaf, digest, tools_digest)
            known_node = self._find_same_node(trie_node, leaf, tokens.run)
            if known_node is None:
                leaf = self._add_node(trie_node, leaf, tokens)
            else:
                parent = leaf = known_node  # the first new node becomes a child of the last known node
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
        root = index if parent == ROOT else self.nodes[parent].root
        self.nodes.append(TraceNode(tokens, parent, root, last_answer_index, trie_node))
        return index

    def _trie_node(self, parent: int, digest: bytes, tools_digest: bytes) -> _TrieNode:
        parent_trie_node = (
            self._trie_roots.setdefault(tools_digest, _TrieNode()) if parent == ROOT else self.nodes[parent].trie_node
        )
        return parent_trie_node.children.setdefault(digest, _TrieNode())


def same_tokens(first: TokenRun, second: TokenRun) -> bool:
    """Whether two messages have the same tokens and images; only then can they share a node."""
    return first.images == second.images and np.array_equal(first.ids, second.ids)
