"""The kind of each root: the task, a sub-agent, or something beside the task, such as a title."""

from dataclasses import replace

from rollout.gateway.roots import ConversationRoot, root_kinds
from rollout.records.conversations import RootKind

MAIN, AUXILIARY, SUBAGENT = RootKind.MAIN, RootKind.AUXILIARY, RootKind.SUBAGENT
TASK = ConversationRoot(
    0, "You write code.", "Fix the bug.", ("read", "write"), turns=9, sampled_tokens=900, first_turn=1
)
TITLE = replace(TASK, node=7, system_text="You write titles.", tools=(), turns=1, sampled_tokens=8, first_turn=0)
SEARCH = replace(TASK, node=9, system_text="You search.", tools=("read",), first_turn=4)


def test_a_single_root_is_main() -> None:
    assert root_kinds([TITLE]) == [MAIN]


def test_no_root_has_no_kind() -> None:
    assert root_kinds([]) == []


def test_a_short_root_without_tools_is_auxiliary() -> None:
    assert root_kinds([TITLE, TASK]) == [AUXILIARY, MAIN]


def test_a_root_without_tools_is_not_auxiliary_if_no_root_has_tools() -> None:
    assert root_kinds([TITLE, replace(TASK, tools=())]) == [MAIN, SUBAGENT]


def test_a_long_root_without_tools_is_not_auxiliary() -> None:
    assert root_kinds([TASK, replace(TITLE, turns=3, first_turn=5)]) == [MAIN, SUBAGENT]


def test_a_root_with_another_system_text_is_a_subagent() -> None:
    assert root_kinds([TASK, replace(SEARCH, tools=TASK.tools)]) == [MAIN, SUBAGENT]


def test_a_root_with_other_tools_is_a_subagent() -> None:
    assert root_kinds([TASK, replace(SEARCH, system_text=TASK.system_text)]) == [MAIN, SUBAGENT]


def test_a_root_after_a_compaction_is_main() -> None:
    compacted = replace(TASK, node=20, first_user_text="Summary: the bug is found.", first_turn=10)
    assert root_kinds([TASK, SEARCH, compacted]) == [MAIN, SUBAGENT, MAIN]


def test_the_order_of_tools_does_not_make_a_subagent() -> None:
    assert root_kinds([TASK, replace(TASK, tools=TASK.tools[::-1], first_turn=10)]) == [MAIN, MAIN]


def test_the_root_with_the_first_turn_is_main() -> None:
    assert root_kinds([SEARCH, TASK]) == [SUBAGENT, MAIN]
