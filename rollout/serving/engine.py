"""The scripted engine behind the HTTP endpoint: a request in, tokens and log-probs out.

There is no neural network here. Where one would run, a scripted policy looks at the pixels. Everything around it is
real: references are read and decoded, prompts expanded, tokens sampled at a temperature, limits kept.
"""

import functools
import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from renderers_adapter.adapter import load_processor_config
from renderers_adapter.geometry import GeometryError, geometry_for
from renderers_adapter.tokenizer import TokenizerError, load_tokenizer
from rollout.serving.expansion import ExpandedPrompt, expand, find_pads
from rollout.serving.media import MediaReader
from rollout.serving.policies import Slot, load_policy
from rollout.serving.protocol import ContentPart, GenerateRequest, RequestRefused
from rollout.serving.sampling import PolicyFault, SampledToken, certain, sample

TINY_MODEL = Path(__file__).parent / "tiny_qwen3_vl"

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """One embedded engine.

    Attributes:
        model_dir: holds the tokenizer and the image processor's configuration, of the Qwen-VL family.
        model_name: the name that requests have to ask for.
        policy: the scripted policy, as `package.module:Class`.
        max_model_len: the longest prompt and answer together, in expanded tokens.
        weight_version: what the engine says its weights are.
        allowed_directories: where `file://` images may be read from.
        latency_ms: time to the first token of each answer, on top of what it really takes.
        token_latency_ms: time to each further token.
    """

    model_dir: Path = TINY_MODEL
    model_name: str = "tiny-qwen3-vl"
    policy: str = "rollout.serving.policies:ColorPolicy"
    max_model_len: int = 32768
    weight_version: str = "0"
    allowed_directories: tuple[Path, ...] = ()
    latency_ms: float = 0.0
    token_latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, and the prompt that the engine saw."""

    prompt: ExpandedPrompt
    tokens: Sequence[SampledToken]
    finish_reason: FinishReason
    stop_reason: int | None

    def cut(self, length: int) -> "Completion":
        """What had been generated when the request was aborted."""
        return replace(self, tokens=self.tokens[:length], finish_reason="abort", stop_reason=None)


class ScriptedEngine:
    """Answers requests one by one; `complete` is pure computation and may be called by several threads.

    Raises:
        TokenizerError, AdapterError: the model directory lacks a file or a token.
        PolicyNotFound: there is no such policy.
    """

    def __init__(self, settings: EmbeddedSettings) -> None:
        self.settings = settings
        self._tokenizer = load_tokenizer(settings.model_dir)
        self._pad = self._tokenizer.token_id("<|image_pad|>")
        self._not_in_prompts = {name: self._tokenizer.token_id(name) for name in ("<|video_pad|>", "<|vision_pad|>")}
        if self._tokenizer.eos_token_id is None:
            raise TokenizerError(
                f"{settings.model_dir} does not say which token ends an answer: "
                "looked for eos_token in tokenizer_config.json."
            )
        self._end = self._tokenizer.eos_token_id
        self._geometry = geometry_for("qwen_vl", load_processor_config(settings.model_dir))
        self._media = MediaReader(settings.allowed_directories)
        self._policy = load_policy(settings.policy)
        self._encode = functools.lru_cache(maxsize=4096)(self._encode_text)

    def complete(self, request: GenerateRequest) -> Completion:
        """Answer a request.

        Raises:
            RequestRefused: the request asks for what this engine does not have, or would be answered with garbage.
        """
        parts = request.content_parts or ()
        self._check_model(request.model)
        self._check_vocabulary(request.token_ids)
        pads = find_pads(request.token_ids, self._pad, len(parts))
        images = [self._media.read(index, part) for index, part in enumerate(parts)]
        lengths = [self._tokens(index, image.width, image.height) for index, image in enumerate(images)]
        prompt = expand(request.token_ids, pads, lengths)
        room = self.settings.max_model_len - len(prompt.token_ids)
        if room < 1:
            raise RequestRefused(
                f"This model's maximum context length is {self.settings.max_model_len} tokens, "
                f"but the prompt takes {len(prompt.token_ids)}, images included; leave room for an answer.",
                param="token_ids",
            )
        slots = self._ask(self._tokenizer.decode(request.token_ids), [np.asarray(image) for image in images])
        sampling = request.sampling_params
        try:
            tokens = sample(slots, sampling.temperature, _draw(request, parts), self._encode)
        except PolicyFault as fault:
            raise self._policy_failed(str(fault)) from fault
        limit = min(sampling.max_tokens or room, room)
        return self._stopped([*tokens, certain(self._end)], sampling.stop_token_ids or (), limit, prompt)

    def _check_model(self, model: str | None) -> None:
        if model not in (None, self.settings.model_name):
            raise RequestRefused(
                f"The model `{model}` does not exist; this engine serves `{self.settings.model_name}`.",
                param="model",
                status=404,
            )

    def _check_vocabulary(self, token_ids: list[int]) -> None:
        greatest = max(token_ids)
        if greatest >= self._tokenizer.vocab_size:
            raise RequestRefused(
                f"token_ids[{token_ids.index(greatest)}] is {greatest}, "
                f"outside the vocabulary of {self._tokenizer.vocab_size} tokens.",
                param="token_ids",
            )
        for name, token_id in self._not_in_prompts.items():
            if token_id in token_ids:
                raise RequestRefused(
                    f"token_ids[{token_ids.index(token_id)}] is {name}; this engine takes images only.",
                    param="token_ids",
                )

    def _tokens(self, index: int, width: int, height: int) -> int:
        try:
            return self._geometry.layout(width=width, height=height).tokens
        except GeometryError as error:
            raise RequestRefused(f"content_parts[{index}]: {error}", param=f"content_parts[{index}]") from error

    def _ask(self, prompt: str, images: Sequence[np.ndarray]) -> Sequence[Slot]:
        try:
            return self._policy.answer(prompt, images)
        except Exception as error:
            raise self._policy_failed(f"{type(error).__name__}: {error}") from error

    def _policy_failed(self, reason: str) -> RequestRefused:
        return RequestRefused(f"The scripted policy {self.settings.policy} failed: {reason}.", status=500)

    def _stopped(
        self, tokens: list[SampledToken], stop_ids: Sequence[int], limit: int, prompt: ExpandedPrompt
    ) -> Completion:
        """The tokens up to and including the first that stops; as in vLLM, the end token stops without a reason."""
        for count, token in enumerate(tokens[:limit], start=1):
            if token.token_id == self._end:
                return Completion(prompt, tokens[:count], "stop", None)
            if token.token_id in stop_ids:
                return Completion(prompt, tokens[:count], "stop", token.token_id)
        return Completion(prompt, tokens[:limit], "length", None)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text))


def _draw(request: GenerateRequest, parts: Sequence[ContentPart]) -> random.Random:
    """The randomness of one answer; a seed makes it a function of the request, and of nothing else.

    The prompt enters too: were it the seed alone, all turns of a rollout that sends one seed would err together.
    """
    seed = request.sampling_params.seed
    if seed is None:
        return random.Random()  # noqa: S311 - sampling, not a secret
    digest = hashlib.sha256(f"{seed}".encode())
    digest.update(array("Q", request.token_ids))
    digest.update("".join(part.uuid for part in parts).encode())
    return random.Random(digest.digest())  # noqa: S311 - reproducible, not secret
