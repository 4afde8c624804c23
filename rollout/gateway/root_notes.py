"""Collects what is known of each root of an endpoint, for the rule that says what the root is for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout.environments.endpoint import ConversationRoot
from rollout.records.messages import Message
from rollout.session.turns import SessionTurn


class RootNotes:
    """The roots of one endpoint, with their turns."""

    def __init__(self) -> None:
        self._roots: dict[int, ConversationRoot] = {}

    def add(self, turn: SessionTurn, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Add a turn to its root."""
        known = self._roots.get(turn.root)
        if known is None:
            known = ConversationRoot(
                node=turn.root,
                first_turn=turn.reply.turn,
                turns=0,
                sampled_tokens=0,
                system=_first_text(messages, "system"),
                user=_first_text(messages, "user"),
                tools=tuple(str(tool["function"]["name"]) for tool in tools or ()),
            )
        self._roots[turn.root] = replace(
            known,
            first_turn=min(known.first_turn, turn.reply.turn),
            turns=known.turns + 1,
            sampled_tokens=known.sampled_tokens + turn.reply.completion_tokens,
        )

    def in_order(self) -> list[ConversationRoot]:
        """Return the roots in the order of their first turns."""
        return sorted(self._roots.values(), key=lambda root: root.first_turn)


def _first_text(messages: Sequence[Message], role: str) -> str:
    """Return the text of the first message with this role; empty without one."""
    content = next((message["content"] for message in messages if message["role"] == role), "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
