"""What is read from an engine's error answer."""

from typing import Any

import orjson
import pytest

from rollout.engine.error_answers import error_message, refused_sampling_key, require_success
from rollout.engine.errors import EngineBroken, EngineError, EnginePaused, EngineRefused, EngineUnavailable
from rollout.engine.request import GenerateRequest
from tests.unit.engine.faulty import REFUSED_DURING_PAUSE, FaultyEngine, client_of


def answer(message: str, param: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}})


def validation_error(reason: str) -> str:
    """Return the message of vLLM 0.32 for an error in a request's body."""
    problem = {
        "type": "value_error",
        "loc": "body.sampling_params",
        "msg": f"Value error, {reason}",
        "input": "<dict of 4 items>",
    }
    return f"1 validation error:\n  {problem}"


@pytest.mark.parametrize(
    ("content", "key_and_reason"),
    [
        (answer("min_p must be in [0, 1], got 2.0."), "min_p: min_p must be in [0, 1], got 2.0."),
        (answer("must be in [0, 2], got 3.0.", "temperature"), "temperature: must be in [0, 2], got 3.0."),
        (
            answer(validation_error("min_tokens must be at most 8."), "body.sampling_params"),
            "min_tokens: min_tokens must be at most 8.",
        ),
        (
            answer(validation_error("it's not for greedy sampling"), "body.sampling_params.top_k"),
            "top_k: it's not for greedy sampling",
        ),
        (
            answer("sampling_params.stop: this engine cannot honour it.", "sampling_params.stop"),
            "stop: this engine cannot honour it.",
        ),
    ],
)
def test_a_refused_sampling_key_is_found_wherever_an_engine_names_it(content: bytes, key_and_reason: str) -> None:
    assert refused_sampling_key(content) == key_and_reason


@pytest.mark.parametrize(
    "content",
    [answer("The prompt is too long.", "token_ids"), answer("no"), b'{"detail": "no"}', b"no", b"", b"[1]", b'"a"'],
)
def test_another_refusal_names_no_sampling_key(content: bytes) -> None:
    assert refused_sampling_key(content) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (answer("CUDA out of memory"), "CUDA out of memory"),
        (b"<html>\n  <h1>Internal Server Error</h1>", "<html> <h1>Internal Server Error</h1>"),
        (b"", "(the engine gave no reason)"),
        (b"x" * 100_000, "x" * 2000),
    ],
    ids=["vllm", "html", "empty", "long"],
)
def test_the_reason_is_the_engines_own_text(content: bytes, message: str) -> None:
    assert error_message(content) == message


async def test_the_error_of_a_refused_sampling_key_begins_with_the_key(text: GenerateRequest) -> None:
    async def refuse(_: dict[str, Any]) -> tuple[int, bytes]:
        return 400, answer("min_p must be in [0, 1], got 2.0.")

    engine = FaultyEngine(refuse)
    async with client_of(engine) as client:
        with pytest.raises(EngineRefused) as refused:
            await client.generate(text)
    assert str(refused.value) == (
        f"min_p: min_p must be in [0, 1], got 2.0. The engine at {engine.url}/inference/v1/generate refused this key "
        "of engine.sampling or chat(sampling=…) with status 400."
    )


def test_a_refusal_during_a_pause_is_an_error_of_its_own() -> None:
    with pytest.raises(EnginePaused, match="with status 503: Generation is paused"):
        require_success("http://a", *REFUSED_DURING_PAUSE)


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (503, REFUSED_DURING_PAUSE[1].replace(b"Generation is paused", b"The engine is busy"), EngineUnavailable),
        (503, REFUSED_DURING_PAUSE[1].replace(b"ServiceUnavailableError", b"Service Unavailable"), EngineUnavailable),
        (503, b"Generation is paused.", EngineUnavailable),
        (503, b'["Generation is paused."]', EngineUnavailable),
        (503, b"", EngineUnavailable),
        (429, REFUSED_DURING_PAUSE[1], EngineUnavailable),
        (500, REFUSED_DURING_PAUSE[1], EngineBroken),
    ],
)
def test_another_answer_is_not_taken_for_a_pause(status: int, content: bytes, error: type[EngineError]) -> None:
    with pytest.raises(error) as raised:
        require_success("http://a", status, content)
    assert type(raised.value) is error
