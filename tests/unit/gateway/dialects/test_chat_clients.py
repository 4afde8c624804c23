"""What real clients of chat completions sent after two answers, shortened; `chat_bodies` has their requests."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import AnswerChoice, AnsweredCall
from rollout.gateway.dialects.chat import ChatDialect
from rollout.gateway.echoes import ConversationTree, EchoMode, Resolved
from rollout.records.conversations import Echo
from tests.unit.gateway.client_messages import TOOLS
from tests.unit.gateway.dialects.chat_requests import PIXEL, answer, choice

BODIES = Path(__file__).parent / "chat_bodies"
IMAGE_PART = {"type": "image_url", "image_url": {"url": PIXEL}}
REASONING = ("I need both results.\nSo two calls.", "Now the picture.")
ADD_ARGUMENTS = '{"b":  2.0,\n "a" : 1.50}'
ANSWERS = (
    choice(
        calls=(
            AnsweredCall("call_1_0", "add", ADD_ARGUMENTS),
            AnsweredCall("call_1_1", "lookup", '{ "word":"caf\\u00e9" }'),
        ),
        reasoning=REASONING[0],
    ),
    choice(
        "I look at the picture.",
        (AnsweredCall("call_2_0", "look_at", '{"name" : "square"}'),),
        reasoning=REASONING[1],
    ),
)
OPENCODE_ANSWERS = (
    choice(
        calls=(
            AnsweredCall("call_2_0", "bash", '{"command": "echo one", "description": "Runs echo"}'),
            AnsweredCall("call_2_1", "bash", '{"command": "echo caf\\u00e9", "description": "Runs echo"}'),
        ),
        reasoning=REASONING[0],
    ),
    choice(
        "I look at the picture.",
        (AnsweredCall("call_3_0", "read", '{"filePath": "picture.png"}'),),
        reasoning=REASONING[1],
    ),
)
ECHOES = {
    "openai_chat": Echo.EXACT,
    "openai_chat_async": Echo.EXACT,
    "openai_chat_streamed": Echo.EXACT,
    "litellm_chat": Echo.EXACT,
    "langgraph_chat": Echo.NORMALISED,
    "pydantic_ai_chat": Echo.NORMALISED,
    "agents_sdk_chat": Echo.NORMALISED,
    "agents_sdk_chat_streamed": Echo.NORMALISED,
    "opencode": Echo.NORMALISED,
}


def load(client: str) -> dict[str, Any]:
    """Return the request of a client."""
    body: dict[str, Any] = orjson.loads((BODIES / f"{client}.json").read_bytes())
    return body


def played(client: str) -> Resolved:
    """Return how the request of a client is seen, after the answers in it were given."""
    dialect, tree, body = ChatDialect(), ConversationTree(EchoMode.TOLERANT), load(client)
    answers: tuple[AnswerChoice, ...] = OPENCODE_ANSWERS if client == "opencode" else ANSWERS
    for turn, given in enumerate(answers):
        asked = [at for at, message in enumerate(body["messages"]) if message["role"] == "assistant"][turn]
        request = dialect.read(orjson.dumps(body | {"messages": body["messages"][:asked]}))
        (sent,) = dialect.sent_messages(request, answer(given))
        tree.add_answer(tree.resolve(request.messages, TOOLS), sent, dict(sent.message), turn)
    return tree.resolve(dialect.read(orjson.dumps(body)).messages, TOOLS)


@pytest.mark.parametrize("client", ECHOES)
def test_the_answers_in_the_request_of_a_client_are_recognised(client: str) -> None:
    resolved = played(client)
    assert (resolved.echo, resolved.echoed_turns) == (ECHOES[client], (0, 1))


@pytest.mark.parametrize("client", ECHOES)
def test_the_session_gets_the_sampled_reasoning_whatever_a_client_drops(client: str) -> None:
    answers = [message for message in played(client).messages if message["role"] == "assistant"]
    assert [message["reasoning_content"] for message in answers] == list(REASONING)


@pytest.mark.parametrize("client", ECHOES)
def test_the_image_in_the_request_of_a_client_is_in_the_conversation(client: str) -> None:
    contents = [message["content"] for message in played(client).messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    assert [part for part in parts if part["type"] == "image_url"] == [IMAGE_PART]


def test_the_system_message_of_pydantic_ai_becomes_a_message_of_the_user() -> None:
    texts = [message["content"] for message in played("pydantic_ai_chat").messages if message["role"] == "user"]
    assert texts[1] == "<system-message>\nFiles stand between marks.\n</system-message>"


def test_there_is_a_request_of_each_client() -> None:
    assert sorted(path.stem for path in BODIES.iterdir()) == sorted(ECHOES)
