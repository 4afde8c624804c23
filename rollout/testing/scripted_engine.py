"""An engine that gives exactly the answers of a test, over the same HTTP endpoint and with the same checks as others.

For each turn, the client asks the script for the answer, writes it as tokens, and stores these in the engine under the
id of the request. Then it sends the request as usual.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import ParsedCompletion
from renderers_adapter.tokens import as_logical_ids, concat_ids
from rollout.engine.client import EngineClient
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.records.messages import FinishReason, Message
from rollout.serving.embedded import EmbeddedSettings, ScriptedJob
from rollout.serving.engine import Job, ModelCard
from rollout.serving.protocol import GenerateBody
from rollout.serving.request_reader import RequestReader
from rollout.serving.sampling import certain_token
from rollout.testing.answers import Answer, AnswerScript, AnswerUnusable

_QUESTION: Message = {"role": "user", "content": "?"}
_Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class _Call:
    """The call of `chat` to which a request belongs."""

    turn: int
    messages: list[Message]
    tools: _Tools


_call: ContextVar[_Call] = ContextVar("the running call of chat")


@contextmanager
def call_of_chat(turn: int, messages: list[Message], tools: _Tools) -> Iterator[None]:
    """Set the call of `chat` to which the requests in this context belong."""
    token = _call.set(_Call(turn, messages, tools))
    try:
        yield
    finally:
        _call.reset(token)


@dataclass(frozen=True, slots=True)
class _SampledAnswer:
    """An answer as tokens, without an end token; `ends` says whether an end token follows."""

    token_ids: tuple[int, ...]
    ends: bool


class ScriptedAnswersEngine:
    """Answers each request with the tokens that are stored for it.

    Attributes:
        model_card: the description of the model that the engine serves.

    Raises:
        TokenizerError, AdapterError: the model directory lacks a file or a token.
    """

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        self.model_card = ModelCard(settings.model_name, settings.model_dir, settings.max_model_len)
        self._reader = RequestReader(self.model_card, settings.allowed_directories, settings.image_memory)
        self._answers: dict[str, _SampledAnswer] = {}

    def store_answer(self, request_id: str, token_ids: Sequence[int], *, ends: bool) -> None:
        """Store the tokens of an answer for a request; all tries of the request get them."""
        self._answers[request_id] = _SampledAnswer(tuple(token_ids), ends)

    def prepare(self, request: GenerateBody) -> Job:
        """Read the request, and return its stored answer; see `Engine.prepare`."""
        parsed = self._reader.read(request)
        answer = self._answers[request.request_id.rpartition(".")[0]]  # the number of the try follows the dot
        tokens = [certain_token(token_id) for token_id in answer.token_ids]
        stop_conditions = parsed.stop_conditions
        if answer.ends:
            tokens.append(certain_token(self._reader.end_tokens.closing(request.token_ids)))
        else:
            stop_conditions = replace(stop_conditions, max_tokens=min(stop_conditions.max_tokens, len(tokens)))
        return ScriptedJob(parsed.prompt, stop_conditions, tokens, self._settings)

    def reload(self, directory: Path | None) -> None:
        """Do nothing: there are no weights."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class ScriptedClient(EngineClient):
    """Asks the script for the answer of a turn before it sends the request."""

    def __init__(
        self, url: str, engine: ScriptedAnswersEngine, script: AnswerScript, renderers: RendererPool, *, timeout: float
    ) -> None:
        super().__init__([url], engine.model_card.name, timeout=timeout)
        self._engine = engine
        self._script = script
        self._renderers = renderers

    async def generate(self, request: GenerateRequest) -> Generation:
        """Store the script's answer in the engine, and send the request; see `EngineClient.generate`."""
        call = _call.get()
        try:
            answer = await self._script.next_answer(call.turn, copy.deepcopy(call.messages))
            token_ids = await _write_tokens(answer, call, self._renderers)
        except Exception as error:
            self._script.error = self._script.error or error
            raise
        ends = answer.finish_reason == FinishReason.STOP
        self._engine.store_answer(request.request_id, token_ids, ends=ends)
        return await super().generate(request)


async def _write_tokens(answer: Answer, call: _Call, renderers: RendererPool) -> list[int]:
    """Return the tokens that the model would sample for an answer, without an end token.

    Raises:
        AnswerUnusable: if these tokens are parsed, their tool calls differ from those of the test.
    """
    reasoning = f"<think>\n{answer.reasoning}\n</think>\n\n" if answer.reasoning else ""
    prefix = reasoning + answer.text
    if not answer.tool_calls:
        return renderers.tokenizer.encode(prefix)
    opened = await renderers.render([_QUESTION], call.tools)
    answered = await renderers.render([_QUESTION, _message_of(answer)], call.tools)
    prompt = concat_ids(*(segment.ids for segment in opened.segments), opened.generation_prompt)
    conversation = concat_ids(*(segment.ids for segment in answered.segments))
    calls = [token for token in conversation[len(prompt) :].tolist() if token not in renderers.stop_token_ids]
    token_ids = [*(renderers.tokenizer.encode(f"{prefix}\n") if prefix else []), *calls]
    _require_same(answer, renderers.parse(opened.generation_prompt, as_logical_ids(token_ids), call.tools), call.turn)
    return token_ids


def _message_of(answer: Answer) -> Message:
    """Return a message with the tool calls of an answer, without its text, which is sampled as it is."""
    calls = [
        {"id": f"call-{at}", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for at, (name, arguments) in enumerate(answer.tool_calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _require_same(answer: Answer, parsed: ParsedCompletion, turn: int) -> None:
    read = [(call.name, dict(call.arguments)) for call in parsed.tool_calls if call.error is None]
    written = [(name, dict(arguments)) for name, arguments in answer.tool_calls]
    if read != written:
        raise AnswerUnusable(
            f"the answer of turn {turn} calls {written}, but in the model's format these calls are parsed as {read}. "
            "Use names and JSON values that this format can contain, and no tool call inside the text."
        )
