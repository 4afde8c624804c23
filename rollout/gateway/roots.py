"""Decides what each conversation of a rollout is for: the task, a part of it, or something beside it.

Programs use one key for all of their conversations. Many ask for a title first, without tools. Others let sub-agents
work on parts of the task, or begin again with a summary of a conversation that became too long.
"""

from collections.abc import Sequence

from rollout.environments.endpoint import ConversationRoot
from rollout.records.conversations import RootKind

_MAX_AUXILIARY_TURNS = 2


def root_kinds(roots: Sequence[ConversationRoot]) -> Sequence[RootKind]:
    """Return the kind of each root. This is the default rule; an environment may have its own.

    1. A single root is main.
    2. A root is auxiliary if it has no tools, another root has some, and it has at most two turns.
    3. Among the others, the root with the first turn is main. So is every other root with the same system text and
       the same tools, for example after a compaction.
    4. The rest are sub-agents.
    """
    some_have_tools = any(root.tools for root in roots)
    auxiliary = [some_have_tools and not root.tools and root.turns <= _MAX_AUXILIARY_TURNS for root in roots]
    others = [root for root, is_auxiliary in zip(roots, auxiliary, strict=True) if not is_auxiliary]
    main = min(others, key=lambda root: root.first_turn, default=None)
    return [
        RootKind.AUXILIARY
        if is_auxiliary
        else RootKind.MAIN
        if main is not None and _purpose(root) == _purpose(main)
        else RootKind.SUBAGENT
        for root, is_auxiliary in zip(roots, auxiliary, strict=True)
    ]


def _purpose(root: ConversationRoot) -> tuple[str, frozenset[str]]:
    return root.system, frozenset(root.tools)
