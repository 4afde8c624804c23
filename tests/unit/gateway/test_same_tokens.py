"""One conversation has the same tokens in every dialect as in `model.chat`, over real HTTP."""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from rollout.environments.base import Environment, Score
from rollout.records.conversations import Echo
from rollout.testing import Answer, Played, play
from rollout.trainer.check import check
from tests.unit.gateway.dialect_clients import SYSTEM
from tests.unit.gateway.dialect_conversations import CHAT_TOOLS, PATHS, new_client


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


QUESTION = "What does the café sell, and what is in the picture?"
ANSWERS = (
    Answer(reasoning="Two tools at once.", tool_calls=[("run", {"b": 2, "a": 1.5, "word": "café"}), ("run", {})]),
    Answer("I look at it.", reasoning="Now the picture.", tool_calls=[("view", {"name": "square"})]),
    Answer(reasoning="Again.", tool_calls=[("mcp__files__read", {"path": ["a", {"b": None}]})]),
    Answer("One more.", tool_calls=[("run", {"n": 10**12, "yes": True})]),
    Answer("A red square,\n and coffee.", reasoning="Done."),
)
SEEN = [
    {"type": "text", "text": "This is it:"},
    {"type": "image_url", "image_url": {"url": _picture()}},
]
RESULTS: tuple[list[Any], ...] = (["3.5", "no arguments"], [SEEN], ["two\nlines"], ["é"])


class Program(Environment):
    """Plays the conversation as the client of one dialect."""

    dialect: str

    async def run(self, task: Any, model: Any) -> Score:
        client = new_client(self.dialect)
        client.add_user(QUESTION)
        async with model.endpoint() as endpoint:
            headers = {"authorization": f"Bearer {endpoint.key}", "content-type": "application/json"}
            async with httpx.AsyncClient(base_url=endpoint.anthropic_base_url, headers=headers, timeout=300) as http:
                for results in (*RESULTS, []):
                    response = await http.post(PATHS[self.dialect], content=client.body())
                    assert response.status_code == 200, response.text
                    ids = client.add_answer(response.json())
                    if results:
                        client.add_results(ids, results)
        return Score(reward=1.0)


class ChatProgram(Program):
    dialect = "chat"


class ResponsesProgram(Program):
    dialect = "responses"


class MessagesProgram(Program):
    dialect = "messages"


class Direct(Environment):
    """Plays the conversation with `model.chat`."""

    async def run(self, task: Any, model: Any) -> Score:
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
        for results in (*RESULTS, []):
            reply = await model.chat(messages, tools=CHAT_TOOLS)
            messages.append(reply.message)
            for call, content in zip(reply.message.get("tool_calls") or (), results, strict=True):
                content = content if isinstance(content, str) else [dict(part) for part in content]
                name = call["function"]["name"]
                messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": content})
        return Score(reward=1.0)


PROGRAMS = {"chat": ChatProgram, "responses": ResponsesProgram, "messages": MessagesProgram}


def tokens(played: Played) -> list[tuple[str, list[int], int]]:
    """Return the role, the token ids and the start of the sampled tokens of each recorded message."""
    assert played.reward == 1.0
    return [(str(node.message["role"]), list(node.run.ids), node.run.sampled_from) for node in played.trajectory.nodes]


@pytest.mark.parametrize("dialect", PROGRAMS)
async def test_a_conversation_has_the_tokens_of_the_same_calls_of_chat(dialect: str) -> None:
    direct = await play(Direct, answers=ANSWERS)
    played = await play(PROGRAMS[dialect], answers=ANSWERS)
    assert tokens(played) == tokens(direct)


@pytest.mark.parametrize("dialect", PROGRAMS)
async def test_every_echo_of_a_conversation_is_exact(dialect: str) -> None:
    played = await play(PROGRAMS[dialect], answers=ANSWERS)
    assert [step.echo for step in played.trajectory.steps] == [None, *[Echo.EXACT] * 4]


@pytest.mark.parametrize("dialect", PROGRAMS)
async def test_the_checker_finds_nothing_wrong_in_a_conversation(dialect: str) -> None:
    played = await play(PROGRAMS[dialect], answers=ANSWERS)
    assert not check(played.trajectory)
