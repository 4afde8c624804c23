"""Programs play over the gateway with a real vLLM behind it: every prompt has the tokens that the server itself makes.

The weights are random. Where a test needs tool calls, each token of the answer is the only one that the server may
sample. Such an answer has reasoning, which the server's template leaves out when it renders the conversation again. So
the tokens of the turns before are compared as they were sampled, and what follows them with the server's rendering.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.config.gateway import GatewayConfig
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.environments.endpoint import Endpoint
from rollout.gateway.dialects.chat import ChatDialect
from rollout.records.conversations import Echo
from rollout.records.messages import FinishReason, Message
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.trainer import check, samples
from rollout.trainer.trajectory import Trajectory
from tests.needs.vllm.spelling import SpellingClient, say
from tests.unit.gateway.dialect_clients import (
    PARAMETERS,
    SYSTEM,
    TOOL_NAMES,
    DialectClient,
    MessagesClient,
    ResponsesClient,
)
from tests.unit.gateway.random_conversations import PlannedAnswer
from tests.unit.gateway.test_dialect_echoes import answer_message, make_answer

TASK = Task(id="000000", index=0, seed=7)
DESCRIPTION = "Does what its name says."  # the server writes null for a tool without one, and we write nothing
TOOLS = [
    {"type": "function", "function": {"name": name, "description": DESCRIPTION, "parameters": PARAMETERS}}
    for name in TOOL_NAMES
]
QUESTION = "What is in the two pictures?"
_TOKENS = "generation_tokens_total"
_ENDLESS = 30_000
_ASK = """
import os, sys, httpx
headers = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
httpx.post(url, content=sys.argv[1], headers=headers, timeout=600, trust_env=False)
"""
Program = Callable[[Endpoint, httpx.AsyncClient], Awaitable[None]]


def picture(color: str, size: int) -> dict[str, Any]:
    url = draw_square(color, ColorCodewordSettings(image_size=size), seed=color)
    return {"type": "image_url", "image_url": {"url": url}}


ANSWERS = [
    PlannedAnswer(
        text="Two looks.",
        reasoning="There are two.",
        calls=[("view", {"path": "a.png"}), ("run", {"command": "ls -l", "times": 2})],
        results=[[{"type": "text", "text": "a.png:"}, picture("red", 64)], "a.png b.png"],
        user=None,
    ),
    PlannedAnswer("", "One is left.", [("view", {"path": "b.png"})], [[picture("blue", 96)]], user=None),
    PlannedAnswer("Red and blue.", "", [], [], user="And which is larger?"),
]


class ChatClient(DialectClient):
    """A client of OpenAI chat completions, which sends answers back as it got them."""

    def __init__(self, habits: None = None) -> None:
        super().__init__(habits)
        self.dialect = ChatDialect()

    def request(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": SYSTEM}, *self.conversation]
        return {"model": "policy", "tools": TOOLS, "messages": messages}

    def add_user(self, text: str) -> None:
        self.conversation.append({"role": "user", "content": text})

    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        message = answer["choices"][0]["message"]
        self.conversation.append(message)
        return [call["id"] for call in message.get("tool_calls", ())]

    def add_results(self, ids: Any, contents: Any) -> None:
        for call_id, content in zip(ids, contents, strict=True):
            self.conversation.append({"role": "tool", "tool_call_id": call_id, "content": content})


CLIENTS: Mapping[str, tuple[type[DialectClient], str]] = {
    "chat": (ChatClient, "/v1/chat/completions"),
    "responses": (ResponsesClient, "/v1/responses"),
    "messages": (MessagesClient, "/v1/messages"),
}


class PlayProgram(Environment):
    """Lets a function play over an endpoint, as a program does."""

    def __init__(self, program: Program) -> None:
        super().__init__(EnvironmentSettings())
        self._program = program

    async def run(self, task: Task, model: Model) -> Score:
        async with model.endpoint() as endpoint:
            headers = {"authorization": f"Bearer {endpoint.key}"}
            base_url = endpoint.anthropic_base_url
            async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120, trust_env=False) as http:
                await self._program(endpoint, http)
        return Score(1.0)


async def play_program(policy: PolicyClient, program: Program) -> Trajectory:
    trajectory = (await play(PlayProgram(program), TASK, policy=policy)).trajectory
    assert trajectory.error is None
    assert check(trajectory) == []
    return trajectory


def planned_text(answer: PlannedAnswer) -> str:
    """Return the text that the policy samples for an answer, in the format of the model family."""
    calls = [
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in answer.calls
    ]
    thoughts = f"<think>\n{answer.reasoning}\n</think>\n\n" if answer.reasoning else ""
    return thoughts + "\n".join(filter(None, [answer.text, *calls]))


def conversations() -> list[list[Message]]:
    """Return the conversation before each answer, with the last request, as the server's chat completions take it."""
    messages: list[Message] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    found = [list(messages)]
    for turn, answer in enumerate(ANSWERS):
        message = answer_message(answer, turn)
        message["content"] = message["content"] or None  # as clients send it; the server adds a line break after ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        messages.append(message)
        for call_id, content in zip(answer.call_ids(turn), answer.results, strict=True):
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        if answer.user is not None:
            messages.append({"role": "user", "content": answer.user})
        found.append(list(messages))
    return found


def render(live: Any, messages: list[Message]) -> list[int]:
    """Return the prompt that the server itself makes of a conversation."""
    with live.http() as server:
        asked = {"model": "tiny", "messages": messages, "tools": TOOLS, "tool_choice": "none"}
        answer = server.post("/v1/chat/completions/render", json=asked)
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["token_ids"]
    return found


def after_last_answer(policy: PolicyClient, prompt: list[int]) -> list[int]:
    """Return the tokens of a prompt that follow its last assistant message."""
    tokenizer = policy.renderers.tokenizer
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    (role,) = tokenizer.encode("assistant")
    starts = [at for at in range(len(prompt) - 1) if prompt[at : at + 2] == [start, role]]
    return prompt[prompt.index(end, starts[-2]) + 1 :]


def request_of(client: DialectClient) -> dict[str, Any]:
    """Return the next request of a client, with descriptions of its tools."""
    request = client.request() | {"max_tokens": 400}
    for tool in request["tools"]:
        tool.get("function", tool)["description"] = DESCRIPTION
    return request


@pytest.mark.parametrize("dialect", CLIENTS)
async def test_every_turn_of_a_program_has_the_servers_own_prompt(
    fleet: Mapping[str, Any], policy_for: Any, dialect: str
) -> None:
    live = fleet["qwen3-vl"]
    make_client, path = CLIENTS[dialect]

    async def program(_: Endpoint, http: httpx.AsyncClient) -> None:
        client = make_client(None)
        client.add_user(QUESTION)
        for answer in ANSWERS:
            say(policy, planned_text(answer))
            ids = client.add_answer((await http.post(path, json=request_of(client))).raise_for_status().json())
            assert len(ids) == len(answer.calls)
            if ids:
                client.add_results(ids, answer.results)
            if answer.user is not None:
                client.add_user(answer.user)
        say(policy, "The blue one.")
        streamed = await http.post(path, json=request_of(client) | {"stream": True})
        assert streamed.raise_for_status().headers["content-type"] == "text/event-stream"
        assert "The blue one." in streamed.text

    async with policy_for(live, client=SpellingClient) as policy:
        trajectory = await play_program(policy, program)
    assert [step.echo for step in trajectory.steps] == [None, Echo.EXACT, Echo.EXACT, Echo.EXACT]
    assert [step.prompt_source for step in trajectory.steps] == ["first", "bridge", "bridge", "bridge"]
    sampled: list[int] = []
    known: list[int] = []
    for messages, (request, generation) in zip(conversations(), policy.engine.turns, strict=True):
        rendered = render(live, messages)
        prompt = request.expanded_prompt.tolist()
        assert prompt == (known + after_last_answer(policy, rendered) if known else rendered)
        sampled = generation.token_ids.tolist()
        known = prompt + sampled
    (sample,) = samples(trajectory)
    assert sample.token_ids.tolist() == known
    assert [len(request.images) for request, _ in policy.engine.turns] == [0, 1, 2, 2]


@pytest.mark.parametrize("dialect", CLIENTS)
async def test_a_conversation_that_the_policy_never_had_has_the_servers_own_prompt(
    fleet: Mapping[str, Any], policy_for: Any, dialect: str
) -> None:
    """The program made the assistant messages up, so the whole prompt is compared."""
    live = fleet["qwen3-vl"]
    make_client, path = CLIENTS[dialect]

    async def program(_: Endpoint, http: httpx.AsyncClient) -> None:
        client = make_client(None)
        client.add_user(QUESTION)
        for turn, answer in enumerate(ANSWERS):
            request = client.dialect.read(client.body())
            written = client.dialect.write_answer(request, make_answer(answer, turn))
            ids = client.add_answer(json.loads(written))
            if ids:
                client.add_results(ids, answer.results)
            if answer.user is not None:
                client.add_user(answer.user)
        (await http.post(path, json=request_of(client))).raise_for_status()

    async with policy_for(live) as policy:
        trajectory = await play_program(policy, program)
    assert [step.echo for step in trajectory.steps] == [Echo.FOREIGN]
    ((request, _),) = policy.engine.turns
    assert request.expanded_prompt.tolist() == render(live, conversations()[-1])


async def ask(http: httpx.AsyncClient, **keys: Any) -> dict[str, Any]:
    """Ask one question over chat completions, and return the choice."""
    body = {"messages": [{"role": "user", "content": "Say something."}], "model": "policy", **keys}
    answer = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def visible_tokens(policy: PolicyClient) -> list[int]:
    """Return the tokens of the visible ASCII characters and the tokens that end an answer.

    A grammar for JSON allows any number of spaces, and random weights may sample them for ever.
    """
    tokenizer = policy.renderers.tokenizer
    return [*(tokenizer.token_id(chr(code)) for code in range(33, 127)), *policy.renderers.stop_token_ids]


async def test_a_schema_that_is_allowed_reaches_the_server_and_marks_the_step(
    fleet: Mapping[str, Any], policy_for: Any
) -> None:
    properties = {"seen": {"type": "boolean"}, "color": {"enum": ["red", "blue"]}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["seen", "color"],
        "additionalProperties": False,
    }
    found: list[dict[str, Any]] = []

    async def program(_: Endpoint, http: httpx.AsyncClient) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "look", "schema": schema}}
        found.extend([await ask(http, response_format=form), await ask(http)])

    async with policy_for(fleet["qwen3-vl"], max_tokens=64, gateway=GatewayConfig(constrained="allow")) as policy:
        policy.sampling["allowed_token_ids"] = visible_tokens(policy)
        trajectory = await play_program(policy, program)
    answer = json.loads(found[0]["message"]["content"])
    assert set(answer) == {"seen", "color"}
    assert isinstance(answer["seen"], bool)
    assert answer["color"] in ("red", "blue")
    assert [step.constrained for step in trajectory.steps] == [True, False]


async def test_a_logit_bias_that_is_allowed_reaches_the_server(fleet: Mapping[str, Any], policy_for: Any) -> None:
    found: list[dict[str, Any]] = []

    async def program(_: Endpoint, http: httpx.AsyncClient) -> None:
        token = policy.renderers.tokenizer.token_id("7")
        found.append(await ask(http, logit_bias={str(token): 100}))

    async with policy_for(fleet["qwen3-vl"], gateway=GatewayConfig(constrained="allow")) as policy:
        trajectory = await play_program(policy, program)
    assert found[0]["message"]["content"] == "7" * 8
    assert trajectory.steps[0].constrained
    assert trajectory.steps[0].banned_ids


async def test_the_stop_text_of_a_program_ends_its_answer_and_is_not_in_it(
    fleet: Mapping[str, Any], policy_for: Any
) -> None:
    choices: list[dict[str, Any]] = []

    async def program(_: Endpoint, http: httpx.AsyncClient) -> None:
        messages: list[Any] = [{"role": "user", "content": "Say something."}]
        for _turn in range(2):
            choices.append(await ask(http, messages=messages, stop=[", "]))
            messages += [choices[-1]["message"], {"role": "user", "content": "Again."}]

    sampling = {"structured_outputs": {"choice": ["red, blue"]}, "max_tokens": 64}
    async with policy_for(fleet["qwen3-vl"], **sampling) as policy:
        trajectory = await play_program(policy, program)
    assert [(choice["message"]["content"], choice["finish_reason"]) for choice in choices] == [("red", "stop")] * 2
    ends = (FinishReason.STOP, ", ", False)
    assert [(step.finish_reason, step.stop_reason, step.constrained) for step in trajectory.steps] == [ends] * 2
    assert [step.echo for step in trajectory.steps] == [None, Echo.EXACT]
    assert trajectory.steps[1].prompt_source == "bridge"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_request_of_a_killed_program_is_cancelled_at_the_server(
    fleet: Mapping[str, Any], policy_for: Any, streamed: bool
) -> None:
    live = fleet["qwen3-vl"]

    async def program(endpoint: Endpoint, _: httpx.AsyncClient) -> None:
        before = await anyio.to_thread.run_sync(live.metric, _TOKENS)
        body = {"model": "policy", "messages": [{"role": "user", "content": "Count."}], "stream": streamed}
        command = (sys.executable, "-c", _ASK, json.dumps(body))
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **endpoint.environ})
        await wait_for(live, _TOKENS, lambda tokens: tokens > before + 2)
        process.kill()
        await process.wait()
        await wait_for(live, "num_requests_running", lambda running: running == 0)
        assert await anyio.to_thread.run_sync(live.metric, _TOKENS) - before < _ENDLESS

    async with policy_for(live, max_tokens=_ENDLESS, ignore_eos=True) as policy:
        trajectory = await play_program(policy, program)
    assert trajectory.steps == ()
    assert not trajectory.unreceived_turns


async def wait_for(live: Any, metric: str, holds: Callable[[float], bool]) -> None:
    """Wait until a metric of the server has a wanted value."""
    with anyio.fail_after(60):
        while not holds(await anyio.to_thread.run_sync(live.metric, metric)):  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.05)
