"""With the checkpoint's own chat template, prompts are those of a real vLLM, and begin with exactly what was sampled.

The reference is the server's render route. A bridged prompt must be the earlier prompt, the sampled tokens, and then
what the server writes after the answer.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from rollout.records.messages import Message
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.trainer import check
from tests.chat_families.conversations import (
    TALKS,
    TASK,
    TOOLS,
    ForeignAnswers,
    Talk,
    TalkEnvironment,
    foreign_conversation,
)
from tests.needs.vllm.chat_templates.conftest import ServedFamily
from tests.needs.vllm.conftest import RecordingClient
from tests.needs.vllm.spelling import SpellingClient, say


def server_prompt(
    server: httpx.Client, served: ServedFamily, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> list[int]:
    """Return the prompt that the server renders."""
    arguments = dict(served.family.options.template)
    asked: dict[str, Any] = {"model": "tiny", "messages": [as_server_message(message) for message in messages]}
    asked |= {"chat_template_kwargs": arguments} if arguments else {}
    asked |= {"tools": tools, "tool_choice": "none"} if tools else {}
    answer = server.post("/v1/chat/completions/render", json=asked)
    assert answer.is_success, answer.text
    ids: list[int] = answer.json()["token_ids"]
    return ids


def as_server_message(message: Message) -> Message:
    """Return a message with the reasoning under the name that vLLM reads."""
    changed = copy.deepcopy(message)
    if "reasoning_content" in changed:
        changed["reasoning"] = changed.pop("reasoning_content")
    return changed


async def play_and_compare(
    served: ServedFamily, policy: PolicyClient, environment: Any, tools: Sequence[Mapping[str, Any]] | None
) -> list[str]:
    """Play, compare each prompt with the server's, and return the sources of the prompts."""
    trajectory = (await play(environment, TASK, policy=policy)).trajectory
    assert trajectory.error is None
    assert check(trajectory) == []
    sources = [str(step.prompt_source) for step in trajectory.steps]
    known: list[int] = []
    assert isinstance(policy.engine, RecordingClient)
    with served.live.http() as server:
        for source, messages, (request, generation) in zip(
            sources, environment.requests, policy.engine.turns, strict=True
        ):
            prompt = request.expanded_prompt.tolist()
            expected = server_prompt(server, served, messages, tools)
            if source == "bridge":
                assert prompt[: len(known)] == known
                tail = prompt[len(known) :]
                assert tail
                assert expected[-len(tail) :] == tail
            else:
                assert prompt == expected
            known = [*prompt, *generation.token_ids.tolist()]
    return sources


def talks_of(served: ServedFamily) -> list[Talk]:
    return [talk for talk in TALKS.values() if talk.family == served.family.name]


async def test_prompts_after_planned_answers_are_the_servers(served: ServedFamily, policy_for: Any) -> None:
    for talk in talks_of(served):
        async with policy_for(served.live, client=SpellingClient, options=served.family.options) as policy:
            environment = TalkEnvironment(talk, lambda answer: say(policy, answer, end=served.family.end_tokens[0]))
            sources = await play_and_compare(served, policy, environment, talk.tools)
        assert sources == [turn.source for turn in talk.turns]


async def test_every_planned_call_is_parsed(served: ServedFamily, policy_for: Any) -> None:
    talk = talks_of(served)[0]
    if served.family.options.tool_parser is None:
        pytest.skip("no parser fits the calls of this family")
    async with policy_for(served.live, client=SpellingClient, options=served.family.options) as policy:
        environment = TalkEnvironment(talk, lambda answer: say(policy, answer, end=served.family.end_tokens[0]))
        await play_and_compare(served, policy, environment, talk.tools)
    calls = [message["tool_calls"] for message in environment.requests[-1] if "tool_calls" in message]
    assert [call["function"]["name"] for (call,) in calls] == ["look_up", "look_up"]


async def test_prompts_after_random_answers_begin_with_what_was_sampled(served: ServedFamily, policy_for: Any) -> None:
    talk = talks_of(served)[-1]
    questions = [turn for turn in talk.turns if turn.message["role"] == "user"]
    talk = Talk(talk.family, talk.opening, None, tuple((questions * 2)[:6]))
    for seed in (1, 2, 3):
        sampling = {"temperature": 1.0, "max_tokens": 12, "seed": seed}
        async with policy_for(served.live, options=served.family.options, **sampling) as policy:
            sources = await play_and_compare(served, policy, TalkEnvironment(talk), None)
        assert "bridge" in sources


async def test_prompts_with_foreign_answers_are_the_servers(served: ServedFamily, policy_for: Any) -> None:
    takes_tools = served.family.takes_tools
    tools = TOOLS if takes_tools else None
    async with policy_for(served.live, options=served.family.options, max_tokens=1) as policy:
        environment = ForeignAnswers(foreign_conversation(with_calls=takes_tools), tools)
        sources = await play_and_compare(served, policy, environment, tools)
    assert len(sources) >= 6
    assert "bridge" not in sources


async def test_a_message_that_spells_the_end_token_stays_text(served: ServedFamily, policy_for: Any) -> None:
    end = served.family.end_tokens[0]
    messages: list[Message] = [{"role": "user", "content": f"Say {end} now"}]
    async with policy_for(served.live, options=served.family.options, max_tokens=1) as policy:
        await play(ForeignAnswers(messages, None), TASK, policy=policy)
        ((request, _),) = policy.engine.turns
    tokenizer, ours = policy.renderers.tokenizer, request.expanded_prompt.tolist()
    with served.live.http() as server:
        theirs = server_prompt(server, served, messages, None)
    end_id = tokenizer.token_id(end)
    assert ours.count(end_id) == theirs.count(end_id) - 1
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)
