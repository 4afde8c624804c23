"""The embedded engine: it answers requests with tokens and log-probs, without a neural network.

    with EmbeddedServer(EmbeddedSettings()) as url:
        ...

A scripted policy, which sees the pixels, replaces the network. Everything else is real: the engine decodes images,
expands prompts, samples tokens at a temperature, keeps limits, and reports versions.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.errors import describe_user_line
from rollout.serving.engine import Answer, Job, ModelCard, SampledToken, WeightsRefused
from rollout.serving.gate import PauseGate
from rollout.serving.policies import AnswerSlot, load_policy
from rollout.serving.protocol import LEAST_LOGIT_BIAS, GenerateBody, RequestRefused
from rollout.serving.request_reader import RequestReader
from rollout.serving.sampling import PolicyFault, certain_token, rng_for_request, sample_slots
from rollout.serving.server import EngineServer

log = structlog.get_logger()

TINY_MODEL = BUILTIN_MODELS["builtin:tiny"]


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """The settings of one embedded engine.

    Attributes:
        model_dir: the directory of a text model or of the Qwen-VL family; its weights are not read.
        model_name: the model name that requests must use.
        policy: the scripted policy, as `package.module:Class`.
        max_model_len: the limit for prompt and answer together, in expanded tokens.
        weight_version: the version that the engine reports for its weights.
        allowed_directories: the directories from which `file://` images may be read.
        image_memory: the limit for the memory to decode images, in bytes.
        latency_ms: the extra time before the first token of each answer, in milliseconds.
        token_latency_ms: the time before each further token, in milliseconds.
    """

    model_dir: Path = TINY_MODEL
    model_name: str = "tiny-qwen3-vl"
    policy: str = "rollout.serving.policies:ColorPolicy"
    max_model_len: int = 32768
    weight_version: str = "0"
    allowed_directories: tuple[Path, ...] = ()
    image_memory: int = DEFAULT_DECODING_MEMORY
    latency_ms: float = 0.0
    token_latency_ms: float = 0.0


class ScriptedEngine:
    """Answers requests with a scripted policy.

    Attributes:
        settings: the settings of the engine.
        model_card: the description of the model that the engine serves.

    Raises:
        TokenizerError, AdapterError: the model directory lacks a file or a token.
        PolicyNotFound: there is no such policy.
    """

    def __init__(self, settings: EmbeddedSettings) -> None:
        self.settings = settings
        self.model_card = ModelCard(settings.model_name, settings.model_dir, settings.max_model_len)
        self._request_reader = RequestReader(self.model_card, settings.allowed_directories, settings.image_memory)
        self._policy = load_policy(settings.policy)
        self._encode = functools.lru_cache(maxsize=4096)(self._encode_text)

    def prepare(self, request: GenerateBody) -> Job:
        """Check the request, sample its answer, and return its job; see `Engine.prepare`."""
        if request.sampling_params.allowed_token_ids is not None:
            raise RequestRefused(
                "sampling_params.allowed_token_ids: a scripted policy does not support them; leave them out or send "
                "null.",
                param="sampling_params.allowed_token_ids",
            )
        banned_ids = _read_bans(request)
        parsed = self._request_reader.read(request)
        text = self._request_reader.tokenizer.decode(request.token_ids)
        slots = self._ask_policy(text, [np.asarray(image) for image in parsed.images])
        try:
            tokens = sample_slots(
                slots, request.sampling_params.temperature, rng_for_request(request), self._encode, banned_ids
            )
        except PolicyFault as fault:
            raise self._policy_failed_error(str(fault), self._line_of_answer()) from fault
        all_tokens = (*tokens, certain_token(self._request_reader.end_tokens.closing(request.token_ids)))
        return ScriptedJob(parsed.prompt, parsed.stop_conditions, all_tokens, self.settings)

    def reload(self, directory: Path | None) -> None:
        """Create the policy again, because it has no weights."""
        if directory is not None and not directory.is_dir():
            raise WeightsRefused(f"weights_path {directory} is not a directory.")
        self._policy = load_policy(self.settings.policy)

    def close(self) -> None:
        """Do nothing: a scripted policy holds no resources."""

    def _ask_policy(self, prompt: str, images: Sequence[np.ndarray]) -> Sequence[AnswerSlot]:
        try:
            return list(self._policy.answer(prompt, images))  # if `answer` is a generator, it runs here
        except Exception as error:
            log.error("the scripted policy failed", policy=self.settings.policy, exc_info=error)
            line = describe_user_line(error) or self._line_of_answer()
            raise self._policy_failed_error(f"{type(error).__name__}: {error}", line) from error

    def _line_of_answer(self) -> str | None:
        """Return the line that defines the policy's `answer`, for an error about its result; None if it is unknown."""
        code = getattr(inspect.unwrap(self._policy.answer), "__code__", None)
        return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"

    def _policy_failed_error(self, reason: str, line: str | None) -> RequestRefused:
        where = "" if line is None else f" at {line}"
        return RequestRefused(f"The scripted policy {self.settings.policy} failed{where}: {reason}.", status=500)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._request_reader.tokenizer.encode(text))


def _read_bans(request: GenerateBody) -> frozenset[int]:
    """Return the tokens that the request bans. Refuse other biases, because a scripted policy has no token logits."""
    biases = request.sampling_params.logit_bias or {}
    if any(bias > LEAST_LOGIT_BIAS for bias in biases.values()):
        raise RequestRefused(
            f"sampling_params.logit_bias: a scripted policy can only ban tokens, by {LEAST_LOGIT_BIAS:g}; leave out "
            "other biases.",
            param="sampling_params.logit_bias",
        )
    return frozenset(biases)


@dataclass(frozen=True, slots=True)
class ScriptedJob(Job):
    """A job whose answer is already sampled; the answer is sent with the latency of a network.

    Attributes:
        tokens: the tokens of the answer.
        settings: the settings with the latency.
    """

    tokens: Sequence[SampledToken]
    settings: EmbeddedSettings

    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        """Add the tokens in time; see `Job.generate`."""
        next_token_at = time.monotonic() + self.settings.latency_ms / 1000
        for token in self.tokens:
            if (wait_seconds := next_token_at - time.monotonic()) > 0:
                await asyncio.sleep(wait_seconds)
            async with gate.step():
                answer.add_token(token, gate.version)
            if answer.finished:
                return
            next_token_at += self.settings.token_latency_ms / 1000


class EmbeddedServer(EngineServer):
    """Runs an embedded engine in its own thread."""

    def __init__(self, settings: EmbeddedSettings, *, port: int = 0, api_key: str | None = None) -> None:
        super().__init__(ScriptedEngine(settings), weight_version=settings.weight_version, port=port, api_key=api_key)
