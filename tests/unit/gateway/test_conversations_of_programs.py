"""What the conversations of a program are for, as its environment, the trainer and the transcript see it."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout.environments.endpoint import ConversationRoot, Endpoint
from rollout.gateway.endpoint import RootRuleError
from rollout.records.conversations import Echo, RootKind
from rollout.records.endings import RolloutStatus
from rollout.trainer import check
from tests.unit.gateway.raw_client import RawClient, Response, body_of, echo_of, text_of
from tests.unit.gateway.served import Served, serve, trained_turns

QUESTION = "Say three words."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as opened:
        yield opened


async def ask(client: RawClient, system: str, text: str, tools: Sequence[str] = ()) -> Response:
    schemas = [{**TOOL, "function": {**TOOL["function"], "name": name}} for name in tools]
    request: dict[str, Any] = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}
    if schemas:
        request["tools"] = schemas
    return await client.ask(json.dumps(request).encode())


async def coding_agent(endpoint: Endpoint) -> None:
    """Ask for a title first, then for the task, and let a sub-agent work."""
    client = RawClient.of(endpoint)
    await ask(client, "You write titles.", "Fix the bug.")
    await ask(client, "You write code.", "Fix the bug.", ["read", "write"])
    await ask(client, "You search.", "Find the bug.", ["read"])
    await ask(client, "You write code.", "A summary. Go on.", ["write", "read"])


async def test_a_title_does_not_train_but_sub_agents_do(served: Served) -> None:
    played = await served.play(coding_agent)
    roots = [step.first for step in played.trajectory.steps]
    assert played.trajectory.root_kinds == {roots[0]: RootKind.AUXILIARY, roots[2]: RootKind.SUBAGENT}
    assert trained_turns(played.trajectory) == [1, 2, 3]
    assert check(played.trajectory) == []


async def test_an_environment_may_have_its_own_rule_for_roots(served: Served) -> None:
    seen: list[Sequence[ConversationRoot]] = []

    def rule(roots: Sequence[ConversationRoot]) -> Sequence[RootKind]:
        seen.append(roots)
        return [RootKind.AUXILIARY if "search" in root.system else RootKind.MAIN for root in roots]

    played = await served.play(coding_agent, rule)
    assert trained_turns(played.trajectory) == [0, 1, 3]
    assert [root.system for root in seen[-1]] == [
        "You write titles.",
        "You write code.",
        "You search.",
        "You write code.",
    ]


@pytest.mark.parametrize("result", [[], [RootKind.MAIN] * 9, ["main"] * 4, None], ids=["none", "nine", "texts", "None"])
async def test_a_wrong_rule_for_roots_is_an_error_of_the_environment(served: Served, result: Any) -> None:
    played = await served.play(coding_agent, lambda roots: result)
    assert played.failure is not None
    assert (played.status, played.failure.type) == (RolloutStatus.FAILED, RootRuleError.__name__)
    assert "one RootKind for each" in played.failure.message


async def test_the_text_of_a_transcript_is_that_of_the_main_conversation(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        main = await ask(client, "You write code.", "Fix the bug.", ["read", "write"])
        await ask(client, "You search.", "Find the bug.", ["read"])
        await ask(client, "You write titles.", "Fix the bug.")
        assert endpoint.transcript.text == text_of(main)

    await served.play(program)


async def test_the_steps_say_how_answers_were_repeated(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first = await client.ask(body_of(QUESTION))
        question = {"role": "user", "content": QUESTION}
        for echo in (echo_of(first)[0], {"role": "assistant", "content": "Words of mine."}):
            await client.ask(body_of("More.", history=[question, echo]))

    played = await served.play(program)
    assert [step.echo for step in played.trajectory.steps] == [None, Echo.EXACT, Echo.FOREIGN]
    assert trained_turns(played.trajectory) == [0, 1, 2]
