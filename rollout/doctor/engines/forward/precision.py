"""The precision in which an engine computes, and the differences of log-probs that it explains."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rollout.doctor.engines.under_test import EngineUnderTest
from rollout.engine.errors import EngineNotFound


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The differences of log-probs that rounding explains.

    Attributes:
        largest: the largest difference of a single token.
        mean: the largest mean of the absolute differences.
    """

    largest: float
    mean: float


TOLERANCES = {
    "float32": Tolerance(1e-4, 2e-5),
    "float16": Tolerance(0.15, 0.01),
    "bfloat16": Tolerance(1.0, 0.05),
}
"""`docs/doctor.md` gives the reasons for these numbers."""


@dataclass(frozen=True, slots=True)
class EnginePrecision:
    """How an engine computes log-probs, as far as it says so.

    Attributes:
        dtype: the type of its numbers, such as `bfloat16`; None if the engine does not say it.
        quantization: how it quantises its weights; None if it does not, or does not say it.
        logprobs_mode: vLLM's `--logprobs-mode`; None if the engine does not say it.
    """

    dtype: str | None = None
    quantization: str | None = None
    logprobs_mode: str | None = None


async def fetch_precision(engine: EngineUnderTest) -> EnginePrecision:
    """Ask an engine how it computes. Only vLLM with the routes for new weights says it.

    Raises:
        EngineError: the engine does not answer.
    """
    try:
        answer = await engine.transport.get(f"{engine.url}/server_info?config_format=json")
    except EngineNotFound:
        return EnginePrecision()
    return read_precision(answer)


def read_precision(answer: bytes) -> EnginePrecision:
    """Return what an answer of `/server_info` says; nothing if the form is unknown, because versions of vLLM differ."""
    try:
        model_config = orjson.loads(answer)["vllm_config"]["model_config"]
        dtype = str(model_config["dtype"]).removeprefix("torch.")
        quantization, logprobs_mode = model_config["quantization"], str(model_config["logprobs_mode"])
    except (ValueError, KeyError, TypeError):
        return EnginePrecision()
    return EnginePrecision(
        dtype if dtype in TOLERANCES else None, None if quantization is None else str(quantization), logprobs_mode
    )


def checkpoint_dtype(directory: Path) -> str:
    """Return the type of the numbers in a checkpoint, from its `config.json`; float32 if it names none of ours."""
    try:
        config: Any = json.loads((directory / "config.json").read_text("utf-8"))
        parts = [config, config.get("text_config") or {}]
    except (OSError, ValueError, AttributeError):
        return "float32"
    named = [
        str(part[key]).removeprefix("torch.") for part in parts for key in ("dtype", "torch_dtype") if part.get(key)
    ]
    return named[0] if named and named[0] in TOLERANCES else "float32"
