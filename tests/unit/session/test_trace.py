"""The trace: which nodes turns share, and where it forks."""

from collections.abc import Sequence

import numpy as np

from renderers_adapter.tokens import ImageSlot, TokenRun, as_logical_ids
from rollout.records.kinds import ROOT, MessageTokens
from rollout.records.messages import CanonicalMessage, canonicalise, digest_tools
from rollout.session.trace import Commit, DigestedMessage, PrefixMatch, Trace


def message(role: str, text: str) -> CanonicalMessage:
    (found,) = canonicalise([{"role": role, "content": text}], ())
    return found


def draft(role: str, text: str, ids: Sequence[int] = (1, 2), images: tuple[ImageSlot, ...] = ()) -> DigestedMessage:
    return digested(message(role, text), TokenRun(as_logical_ids(ids), len(ids), images=images))


def answer_draft(text: str, ids: Sequence[int] = (7, 8, 9)) -> DigestedMessage:
    return digested(message("assistant", text), TokenRun(as_logical_ids(ids), 1, np.zeros(len(ids) - 1, np.float32)))


def digested(canonical: CanonicalMessage, run: TokenRun) -> DigestedMessage:
    return canonical.digest, MessageTokens(canonical.message, run, ())


def commit_turn(trace: Trace, base: int, user: str, reply: str) -> Commit:
    return trace.commit(base, [draft("user", user)], answer_draft(reply), b"")


def texts(trace: Trace, leaf: int) -> list[str]:
    path = []
    while leaf != ROOT:
        path.append(trace.nodes[leaf].tokens.message["content"])
        leaf = trace.nodes[leaf].parent
    return path[::-1]


def test_a_turn_adds_only_its_own_nodes() -> None:
    trace = Trace()
    first = commit_turn(trace, ROOT, "a", "b")
    second = commit_turn(trace, first.leaf, "c", "d")
    assert (second.first, len(second.nodes), second.leaf) == (2, 2, 3)
    assert second.parent == first.leaf
    assert texts(trace, second.leaf) == ["a", "b", "c", "d"]


def test_the_longest_known_prefix_is_found_by_message() -> None:
    trace = Trace()
    first = commit_turn(trace, ROOT, "a", "b")
    commit_turn(trace, first.leaf, "c", "d")
    asked = [message("user", "a"), message("assistant", "b"), message("user", "x")]
    assert trace.match_prefix(asked, b"") == PrefixMatch(last_answer_index=1, answered_messages=2, matched_messages=2)
    assert trace.match_prefix([message("user", "other")], b"") == PrefixMatch(ROOT, 0, 0)


def test_another_continuation_forks_the_trace_and_shares_the_prefix() -> None:
    trace = Trace()
    first = commit_turn(trace, ROOT, "a", "b")
    left, right = commit_turn(trace, first.leaf, "c", "d"), commit_turn(trace, first.leaf, "x", "y")
    assert left.parent == right.parent == first.leaf
    assert texts(trace, right.leaf) == ["a", "b", "x", "y"]


def test_a_retry_shares_the_question_and_gets_an_answer_of_its_own() -> None:
    trace = Trace()
    first, again = commit_turn(trace, ROOT, "a", "b"), commit_turn(trace, ROOT, "a", "b")
    assert len(again.nodes) == 1
    assert again.parent == first.parent + 1
    assert again.leaf != first.leaf


def test_the_same_message_with_other_tokens_is_another_node() -> None:
    trace = Trace()
    trace.commit(ROOT, [draft("user", "a", [1, 2])], answer_draft("b"), b"")
    other = trace.commit(ROOT, [draft("user", "a", [1, 3])], answer_draft("b"), b"")
    assert other.parent == ROOT


def test_the_same_message_with_an_image_of_another_length_is_another_node() -> None:
    trace = Trace()
    for length in (4, 5):
        slot = ImageSlot("0" * 32, 0, length)
        commit = trace.commit(ROOT, [draft("user", "a", [1, 2], (slot,))], answer_draft("b"), b"")
        assert commit.parent == ROOT


def test_tools_belong_to_a_root() -> None:
    trace = Trace()
    commit_turn(trace, ROOT, "a", "b")
    tools = digest_tools([{"name": "add"}])
    assert trace.match_prefix([message("user", "a")], tools) == PrefixMatch(ROOT, 0, 0)
    assert trace.match_prefix([message("user", "a")], b"") == PrefixMatch(ROOT, 0, 1)


def test_the_equal_answer_with_the_matching_continuation_is_found() -> None:
    trace = Trace()
    first = commit_turn(trace, ROOT, "a", "b")
    commit_turn(trace, first.leaf, "c", "d")
    commit_turn(trace, ROOT, "a", "b")
    asked = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    assert trace.match_prefix(asked, b"") == PrefixMatch(last_answer_index=1, answered_messages=2, matched_messages=3)


def test_a_later_answer_counts_more_than_a_longer_known_history() -> None:
    trace = Trace()
    first = commit_turn(trace, ROOT, "a", "b")
    retold = [draft("user", "a"), draft("assistant", "b", [5]), draft("user", "c")]
    trace.commit(ROOT, retold, answer_draft("d"), b"")
    asked = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    assert trace.match_prefix(asked, b"") == PrefixMatch(
        last_answer_index=first.leaf, answered_messages=2, matched_messages=3
    )
    assert trace.match_prefix([*asked, message("assistant", "d")], b"") == PrefixMatch(
        last_answer_index=4, answered_messages=4, matched_messages=4
    )
