"""The interface of an engine, and the answer that it generates token by token.

    class Parrot:
        model_card = ModelCard("parrot", Path("parrot"), max_model_len=64)

        def prepare(self, request):
            stop_conditions = StopConditions(8, frozenset({0}), frozenset())
            return LastWord(ExpandedPrompt(request.token_ids, ()), stop_conditions)

        def reload(self, directory): ...

        def close(self): ...

    class LastWord(Job):
        async def generate(self, answer, gate):
            while not answer.finished:
                async with gate.step():
                    answer.add_token(SampledToken(self.prompt.token_ids[-1], 0.0, 1, ()), gate.version)

The endpoint does the rest: it admits and aborts requests, and answers over HTTP.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

from rollout.serving.gate import PauseGate
from rollout.serving.image_pads import ExpandedPrompt
from rollout.serving.protocol import GenerateBody, RequestRefused

EndReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The description of the model that an engine serves.

    Attributes:
        name: the model name that requests must use.
        directory: the model's directory, with its tokenizer and configuration.
        max_model_len: the limit for prompt and answer together, in expanded tokens.
    """

    name: str
    directory: Path
    max_model_len: int


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sampled token.

    Attributes:
        token_id: the id of the token.
        logprob: the log-prob of the token.
        rank: the rank of the token at its position; 1 for the likeliest token.
        top_logprobs: the likeliest tokens at this position with their log-probs, the likeliest first.
    """

    token_id: int
    logprob: float
    rank: int
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StopConditions:
    """The conditions that end an answer.

    Attributes:
        max_tokens: the limit for the tokens of the answer.
        eos_token_ids: the model's own end tokens.
        stop_token_ids: the end tokens that the request names.
    """

    max_tokens: int
    eos_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]


@dataclass(slots=True)
class Answer:
    """An answer while it is generated.

    Attributes:
        stop_conditions: the conditions that end the answer.
        tokens: the tokens so far.
        weight_versions: for each token, the version of the weights that sampled it.
        finish_reason: why the answer ended; None if it has not ended.
        stop_reason: the stop token that ended the answer, if the request named it.
    """

    stop_conditions: StopConditions
    tokens: list[SampledToken] = field(default_factory=list)
    weight_versions: list[str] = field(default_factory=list)
    finish_reason: EndReason | None = None
    stop_reason: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    def add_token(self, token: SampledToken, version: str) -> None:
        """Add a token, and end the answer if it must end. The model's own end token is no stop reason, as in vLLM."""
        self.tokens.append(token)
        self.weight_versions.append(version)
        if token.token_id in self.stop_conditions.eos_token_ids:
            self.finish_reason = "stop"
        elif token.token_id in self.stop_conditions.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token.token_id
        elif len(self.tokens) >= self.stop_conditions.max_tokens:
            self.finish_reason = "length"

    def version_spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield (version, start, end) for each span of tokens that one version sampled."""
        start = 0
        for version, tokens in groupby(self.weight_versions):
            end = start + len(list(tokens))
            yield version, start, end
            start = end


@dataclass(frozen=True, slots=True)
class Job(ABC):
    """A checked request that can be answered.

    Attributes:
        prompt: the expanded prompt.
        stop_conditions: the conditions that end the answer.
    """

    prompt: ExpandedPrompt
    stop_conditions: StopConditions

    @abstractmethod
    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        """Add tokens until the answer is finished, each token within a step of the gate. An abort cancels this call."""


class Engine(Protocol):
    """The interface of an engine. The endpoint answers with status 500 for every exception except RequestRefused."""

    @property
    def model_card(self) -> ModelCard:
        """The model that is served."""
        ...

    def prepare(self, request: GenerateBody) -> Job:
        """Check a request, and return its job. It must not use the weights, and several threads may call it.

        Raises:
            RequestRefused: the engine does not support the request, or would answer it with garbage.
        """
        ...

    def reload(self, directory: Path | None) -> None:
        """Load all weights from a directory; None means the model's own directory. After an error, nothing has changed.

        It is called in a thread while the gate is closed and no step runs.

        Raises:
            WeightsRefused: the directory has no weights, or they belong to another model.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


class WeightsRefused(RequestRefused):
    """The weights cannot be loaded; the engine keeps its present weights."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=500)
