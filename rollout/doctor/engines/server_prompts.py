"""Asks a server for the prompts that it makes of conversations with its own chat template."""

import json
from collections.abc import Mapping
from typing import Any

import anyio
import orjson

from rollout.config.renderer_options import renderer_options
from rollout.doctor.engines.conversations import Conversation
from rollout.doctor.engines.under_test import CheckNotMade, EngineUnderTest
from rollout.engine.errors import EngineMisconfigured, EngineMismatch, EngineNotFound, EngineRefused, EngineTimeout
from rollout.records.messages import Message

_TIMEOUT_SECONDS = 60.0
_RENDER_ROUTE, _TOKENIZE_ROUTE = "/v1/chat/completions/render", "/tokenize"
_TOKENS_KEY = {_RENDER_ROUTE: "token_ids", _TOKENIZE_ROUTE: "tokens"}


class ServerPrompts:
    """Gets the prompts of one server.

    Attributes:
        expands_images: whether the prompts have as many tokens for each image as the engine sees. From the tokenizer
            route, they have one token for each image, because only some versions of vLLM expand images there.
    """

    def __init__(self, engine: EngineUnderTest, route: str) -> None:
        self._engine = engine
        self._route = route
        self._tool_fields: dict[str, str] = {}
        self.expands_images = route == _RENDER_ROUTE

    @classmethod
    async def find_route(cls, engine: EngineUnderTest, conversation: Conversation) -> "ServerPrompts":
        """Return the prompts of a server, by the best route that it has. The conversation is only sent to find it.

        Raises:
            CheckNotMade: the server has no route that renders messages.
            EngineError: the server gives no usable answer.
        """
        for route in (_RENDER_ROUTE, _TOKENIZE_ROUTE):
            prompts = cls(engine, route)
            try:
                await prompts.render(conversation)
            except EngineNotFound:
                continue
            except EngineMisconfigured:
                raise
            except EngineRefused:
                pass  # the server has the route, but its template cannot write this conversation
            return prompts
        raise CheckNotMade(
            f"this server has neither {_RENDER_ROUTE} nor {_TOKENIZE_ROUTE}; vLLM has them with --enable-scale-out"
        )

    async def render(self, conversation: Conversation, **template: Any) -> list[int]:
        """Return the tokens that the server makes of a conversation.

        Args:
            conversation: the conversation.
            template: arguments of the template, in addition to those of the configuration.

        Raises:
            EngineRefused: the server refuses the conversation.
            EngineError: the server gives no usable answer.
        """
        arguments = {**renderer_options(self._engine.config.model).template_arguments, **template}
        fields: dict[str, Any] = {"chat_template_kwargs": arguments} if arguments else {}
        if not conversation.tools:
            return await self._post(conversation, fields)
        fields["tools"] = conversation.tools
        try:
            return await self._post(conversation, {**fields, **self._tool_fields})
        except EngineMisconfigured:
            raise
        except EngineRefused:
            if self._tool_fields:
                raise
        # vLLM refuses tools if it was started without a parser of calls, unless the model must not call them.
        self._tool_fields = {"tool_choice": "none"}
        return await self._post(conversation, {**fields, **self._tool_fields})

    async def _post(self, conversation: Conversation, fields: Mapping[str, Any]) -> list[int]:
        body = {
            "model": self._engine.model,
            "messages": [_openai_message(message) for message in conversation.messages],
            **fields,
        }
        url = f"{self._engine.url}{self._route}"
        with anyio.move_on_after(_TIMEOUT_SECONDS):
            answer = await self._engine.transport.post(url, orjson.dumps(body))
            tokens = _read_tokens(url, answer, _TOKENS_KEY[self._route])
            return tokens if self.expands_images else _with_one_pad_per_image(tokens, self._engine.adapter.pad_id)
        raise EngineTimeout(f"{url} did not answer within {_TIMEOUT_SECONDS:g} s.")


def _read_tokens(url: str, answer: bytes, key: str) -> list[int]:
    try:
        tokens = orjson.loads(answer)[key]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(f"{url} answers in an unknown form ({error!r}).") from None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise EngineMismatch(f"{url} answers in an unknown form: {key} is not a list of token ids.")
    return tokens


def _with_one_pad_per_image(tokens: list[int], pad_id: int | None) -> list[int]:
    return [token for at, token in enumerate(tokens) if token != pad_id or at == 0 or tokens[at - 1] != pad_id]


def _openai_message(message: Message) -> Message:
    """Return a message in the form of OpenAI's API."""
    written = dict(message)
    if reasoning := written.get("reasoning_content"):
        written["reasoning"] = reasoning  # newer versions of vLLM read this key, and older ones the other
    if calls := written.get("tool_calls"):
        written["tool_calls"] = [_openai_call(call) for call in calls]
        # With an empty text, some templates write a line break before the first call. A null means no text.
        written["content"] = written["content"] or None
    return written


def _openai_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
