"""What stands behind the endpoint: the contract of an engine, and the answer that it writes token by token.

    class Parrot:
        card = ModelCard("parrot", Path("parrot"), max_model_len=64)

        def prepare(self, request):
            return LastWord(ExpandedPrompt(request.token_ids, ()), Limits(8, frozenset({0}), frozenset()))

    @dataclass
    class LastWord(Job):
        async def write(self, answer, gate):
            while not answer.finished:
                async with gate.step():
                    answer.add(SampledToken(self.prompt.token_ids[-1], 0.0, 1, ()), gate.version)

The endpoint does the rest: who may begin, who is aborted, what is said over HTTP.
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

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What an engine says it serves: `max_model_len` is the longest prompt and answer together, in expanded tokens."""

    name: str
    directory: Path
    max_model_len: int


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token, its log-prob and rank (1 for a likeliest), and the likeliest tokens in its place with theirs."""

    token_id: int
    logprob: float
    rank: int
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StopConditions:
    """What ends an answer: its length, the model's own end tokens, and those that the request names."""

    max_tokens: int
    eos_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]


@dataclass(slots=True)
class Answer:
    """The tokens so far, each with the version of the weights that gave it, and why it ended."""

    stop_conditions: StopConditions
    tokens: list[SampledToken] = field(default_factory=list)
    weight_versions: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None

    @property
    def finished(self) -> bool:
        """Whether no further token may follow."""
        return self.finish_reason is not None

    def add_token(self, token: SampledToken, version: str) -> None:
        """One more token; as in vLLM, the model's own end token stops without a reason."""
        self.tokens.append(token)
        self.weight_versions.append(version)
        if token.token_id in self.stop_conditions.eos_token_ids:
            self.finish_reason = "stop"
        elif token.token_id in self.stop_conditions.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token.token_id
        elif len(self.tokens) >= self.stop_conditions.max_tokens:
            self.finish_reason = "length"

    def version_spans(self) -> Iterator[tuple[str, int, int]]:
        """Which version gave which tokens, as (version, start, end)."""
        start = 0
        for version, tokens in groupby(self.weight_versions):
            end = start + len(list(tokens))
            yield version, start, end
            start = end


@dataclass(frozen=True, slots=True)
class Job(ABC):
    """A request that can be answered."""

    prompt: ExpandedPrompt
    stop_conditions: StopConditions

    @abstractmethod
    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        """Add tokens until the answer is finished, each within a step of the gate. Cancelled when it is aborted."""


class Engine(Protocol):
    """What an engine must offer. What it raises beyond RequestRefused is answered with 500."""

    @property
    def model_card(self) -> ModelCard:
        """The model that is served."""
        ...

    def prepare(self, request: GenerateBody) -> Job:
        """Read and check a request. Independent of the weights; called by several threads.

        Raises:
            RequestRefused: the request asks for what this engine does not have, or would be answered with garbage.
        """
        ...

    def reload(self, directory: Path | None) -> None:
        """Take the weights in a directory, or anew those of the model's own; all of them, or none.

        Called in a thread while the gate is closed and no step is being taken.

        Raises:
            WeightsRefused: there are none, or they are another model's.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class WeightsRefused(RequestRefused):
    """Weights that cannot be taken; the engine keeps those that it has."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=500)
