"""Defines what every dialect gives to the gateway, and what it gets: a request, an answer, and a refusal.

A dialect reads the body of a request into messages as `Session.chat` takes them. It writes an answer in its own form:
one JSON object, or server-sent events. It knows nothing of tokens, of HTTP connections or of the session. An endpoint
makes one object of each dialect that its program uses, so a dialect may keep state for the attempt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from rollout.errors import RolloutError
from rollout.gateway.dialects.request_body import RequestBody
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason, Message


class RefusalReason(StrEnum):
    """Why a request is refused. Each dialect has its own status, type and code for each reason.

    Attributes:
        INVALID: the request is wrong, or asks for something that the gateway does not allow.
        TOO_LARGE: the body is larger than `gateway.max_body_bytes`.
        UNKNOWN_KEY: the request has no key, or a key that the gateway did not make.
        ENDED: the rollout of the key has ended.
        NOT_FOUND: the gateway has nothing at this path, or not with this method.
        FAILED: the rollout cannot continue, because its infrastructure failed.
    """

    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNKNOWN_KEY = "unknown_key"
    ENDED = "ended"
    NOT_FOUND = "not_found"
    FAILED = "failed"

    @property
    def status(self) -> int:
        """The HTTP status of an answer with this reason."""
        return _STATUSES[self]


_STATUSES = {
    RefusalReason.INVALID: 400,
    RefusalReason.TOO_LARGE: 413,
    RefusalReason.UNKNOWN_KEY: 401,
    RefusalReason.ENDED: 400,
    RefusalReason.NOT_FOUND: 404,
    RefusalReason.FAILED: 500,
}


class RequestRefused(RolloutError):
    """The gateway refuses a request. The text says what is wrong, where, and what to do.

    Attributes:
        reason: why the request is refused.
        parameter: the key of the request that is wrong, such as `messages[3].content[1]`; None if there is none.
    """

    def __init__(
        self, text: str, *, reason: RefusalReason = RefusalReason.INVALID, parameter: str | None = None
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.parameter = parameter

    def copy(self) -> "RequestRefused":
        """Return the same refusal without its traceback, whose frames hold the whole body of the request."""
        return RequestRefused(str(self), reason=self.reason, parameter=self.parameter)


def rollout_ended() -> RequestRefused:
    """Return the refusal of a request whose rollout is over."""
    return RequestRefused(
        "The rollout of this key, or its endpoint, has ended. Call the model inside `async with model.endpoint()`.",
        reason=RefusalReason.ENDED,
    )


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """A message of a request, in the form that `Session.chat` takes, with the keys by which echoes are found.

    The same bytes of a request give the same object, so that the session finds a known message without comparing it.
    `rollout.gateway.dialects.normal_form.incoming_message` makes it.

    Attributes:
        message: the message. Its tool calls have their arguments as the JSON text that the client sent.
        key: the digest of the message's normal form. Two messages with the same key are the same for the policy.
        exact_key: the digest of the message as the client sent it, also with reasoning, ids and the text of arguments.
    """

    message: Message
    key: bytes
    exact_key: bytes

    @property
    def role(self) -> str:
        """The role of the message."""
        return str(self.message["role"])


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A request for an answer of the policy.

    Attributes:
        messages: the whole conversation. Leading system messages are already joined into one.
        places: for each message, its place in the request, such as `messages[3]`; used in errors.
        tools: the schemas of the tools, as `Session.chat` takes them; None without tools. The same bytes of a request
            give the same object.
        sampling: the sampling keys that the client set, with the names of `engine.sampling`. `max_tokens` and `stop`
            count in any case, the other keys only with `gateway.sampling: theirs`.
        constraints: the sampling keys that change the distribution, such as `structured_outputs` and `logit_bias`; they
            are refused unless `gateway.constrained` is `allow`. The value says which key of the request asks for it.
        choices: the number of answers.
        streamed: whether the client wants server-sent events.
        may_call_tools: False if the client forbids tool calls (`tool_choice: none`). The tools stay in the prompt, and
            calls that the policy makes anyway are shown to the client as text.
        wants_logprobs: whether the client wants the log-probs of the sampled tokens.
        model: the name of the model that the client wrote; answers repeat it.
        ignored_tools: the types of the tools that were left out, because they are no functions.
        options: what only the dialect needs to write the answer.
    """

    messages: Sequence[IncomingMessage]
    places: Sequence[str]
    tools: Sequence[Mapping[str, Any]] | None
    sampling: Mapping[str, Any]
    constraints: Mapping[str, "Constraint"] = field(default_factory=dict)
    choices: int = 1
    streamed: bool = False
    may_call_tools: bool = True
    wants_logprobs: bool = False
    model: str = ""
    ignored_tools: tuple[str, ...] = ()
    options: Any = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """A part of a request that changes the distribution from which the policy samples.

    Attributes:
        parameter: the key of the request, such as `response_format`.
        value: the value for the engine; None if no engine can do it, as with a forced tool, so it is always refused.
    """

    parameter: str
    value: Any


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A tool call in an answer.

    Attributes:
        id: the id of the call.
        name: the name of the tool, as the policy wrote it.
        arguments: the arguments as JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sampled token, for clients that ask for log-probs.

    Attributes:
        text: the text of the token.
        logprob: its log-prob.
    """

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class AnswerChoice:
    """One answer to a request, as clients see it.

    Attributes:
        text: the text, without reasoning and tool calls; may be empty.
        reasoning: the reasoning; empty without reasoning.
        calls: the tool calls.
        finish_reason: why the answer ended. If it ended with `STOP` and has calls, dialects say that it calls tools.
        completion_tokens: the number of tokens of this answer.
        tokens: the sampled tokens with log-probs, if the client asked for them.
        stop_text: the text of the request's `stop` that ended the answer; None if there was none. Neither `text` nor
            `reasoning` contains it, because the providers leave it out.
    """

    text: str
    reasoning: str
    calls: tuple[AnsweredCall, ...]
    finish_reason: FinishReason
    completion_tokens: int
    tokens: tuple[SampledToken, ...] = ()
    stop_text: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. A request that is repeated gets the same object, and so the same bytes.

    Attributes:
        id: an id that is unique in the attempt, of letters and digits; dialects put their prefix before it.
        created: the time of the answer, in seconds since 1970.
        choices: the answers; as many as `TurnRequest.choices`.
        prompt_tokens: the number of tokens in the prompt, with its images expanded.
        cached_tokens: the number of prompt tokens that were in the engine's cache; 0 if it is unknown.
        limit: `NONE` if the policy answered. Otherwise the limit of the rollout that is used up; then the only choice
            is a text of the gateway, which must be marked as not the policy's.
    """

    id: str
    created: int
    choices: tuple[AnswerChoice, ...]
    prompt_tokens: int
    cached_tokens: int = 0
    limit: RolloutLimit = RolloutLimit.NONE

    @property
    def completion_tokens(self) -> int:
        """The number of tokens of all choices."""
        return sum(choice.completion_tokens for choice in self.choices)


class Dialect(Protocol):
    """One dialect, for one endpoint. It may keep state, such as earlier answers; it is used by one event loop."""

    name: str
    """The name of the dialect in metrics: `chat`, `responses` or `messages`."""

    def read(self, body: bytes | RequestBody) -> TurnRequest:
        """Read the body of a request. Raises RequestRefused."""
        ...

    def part_place(self, request: TurnRequest, index: int, part: int) -> str:
        """Return the place in the request of a part of a message, such as `messages[3].content[1]`; used in errors."""
        ...

    def write_answer(self, request: TurnRequest, answer: Answer) -> bytes:
        """Return the answer as one JSON object."""
        ...

    def write_events(self, request: TurnRequest, answer: Answer) -> Iterable[bytes]:
        """Return the answer as server-sent events in the official order, each as its complete bytes."""
        ...

    def sent_messages(self, request: TurnRequest, answer: Answer) -> Sequence[IncomingMessage]:
        """Return, for each choice, the message that `read` would return for an echo that repeats everything exactly."""
        ...

    def write_refusal(self, refusal: RequestRefused) -> bytes:
        """Return the JSON body of an error, in the shape of this dialect."""
        ...

    def write_failure_events(self, request: TurnRequest, refusal: RequestRefused) -> Iterable[bytes]:
        """Return the events of an error after the first byte of a stream was sent."""
        ...
