"""Asks an engine for the ids of texts, and for the text of ids.

vLLM has `/tokenize` and `/detokenize`. A proxy often passes only the routes under `/v1`; then `/v1/completions/render`
gives the ids.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import orjson

from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade, EngineUnderTest
from rollout.engine.error_answers import require_success
from rollout.engine.errors import EngineMismatch, EngineNotFound, EngineTimeout

BYTES_OF_A_REQUEST = 3 << 18
"""The texts of a request have at most this size, in UTF-8. Many proxies refuse bodies of more than 1 MB."""
_ANSWER_TIMEOUT = 60.0
_BODY_TOO_LARGE = 413
_SHOWN_CHARACTERS = 80

IdsFetcher = Callable[[EngineUnderTest, Sequence[str]], Awaitable[list[list[int]]]]
"""Returns the engine's ids of each text."""


async def find_ids_fetcher(engine: EngineUnderTest) -> tuple[IdsFetcher, int]:
    """Return what fetches ids from this engine, and the largest size of a text, in bytes of UTF-8.

    Raises:
        CheckNotMade: the engine has no route for this.
    """
    try:
        await _tokenize(engine, ["a"])
    except EngineNotFound:
        pass
    else:
        return _tokenize, BYTES_OF_A_REQUEST
    try:
        await _render(engine, ["a"])
    except EngineNotFound:
        raise CheckNotMade(
            "this server has neither /tokenize nor /v1/completions/render; let the proxy pass one of them, or name the "
            "vLLM server itself in engine.urls"
        ) from None
    # The render route refuses a prompt that is longer than the context. A text has fewer tokens than bytes.
    return _render, min(BYTES_OF_A_REQUEST, (engine.client.max_model_len or BYTES_OF_A_REQUEST) // 2)


def batches_of_texts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in batches of the size of a request."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text.encode()) > BYTES_OF_A_REQUEST:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text.encode())
    if batch:
        yield batch


async def fetch_text(engine: EngineUnderTest, ids: Sequence[int]) -> str:
    """Return the engine's text of ids.

    Raises:
        EngineNotFound: the engine has no route for this.
    """
    answer = await _ask(engine, "/detokenize", {"tokens": ids})
    match answer:
        case {"prompt": str(text)}:
            return text
    raise _unknown_form(engine, "/detokenize", answer)


async def _tokenize(engine: EngineUnderTest, texts: Sequence[str]) -> list[list[int]]:
    ids = []
    for text in texts:
        answer = await _ask(engine, "/tokenize", {"prompt": text, "add_special_tokens": False})
        match answer:
            case {"tokens": tokens} if _are_ids(tokens):
                ids.append(tokens)
            case _:
                raise _unknown_form(engine, "/tokenize", answer)
    return ids


async def _render(engine: EngineUnderTest, texts: Sequence[str]) -> list[list[int]]:
    route = "/v1/completions/render"
    answer = await _ask(engine, route, {"prompt": texts, "add_special_tokens": False, "max_tokens": 1})
    ids = []
    for rendered in answer if isinstance(answer, list) else [answer]:
        match rendered:
            case {"token_ids": token_ids} if _are_ids(token_ids):
                ids.append(token_ids)
            case _:
                raise _unknown_form(engine, route, rendered)
    if len(ids) != len(texts):
        raise EngineMismatch(f"{engine.url}{route} answers {len(texts)} prompts with {len(ids)} results.")
    return ids


async def _ask(engine: EngineUnderTest, route: str, body: Mapping[str, Any]) -> Any:
    url = f"{engine.url}{route}"
    content_sent = orjson.dumps({"model": engine.model, **body})
    try:
        with anyio.fail_after(_ANSWER_TIMEOUT):
            status, content = await engine.transport.send("POST", url, content_sent)
    except TimeoutError:
        raise EngineTimeout(f"{url} did not answer within {_ANSWER_TIMEOUT:g} s.") from None
    if status == _BODY_TOO_LARGE:
        raise CheckFailed(
            f"a proxy before {url} refused a body of {len(content_sent):,} bytes as too large (status {status})",
            "let the proxy accept bodies of 1 MB",
        )
    answer = require_success(url, status, content)
    try:
        return orjson.loads(answer)
    except ValueError:
        raise _unknown_form(engine, route, answer.decode(errors="replace")) from None


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token_id) is int for token_id in value)


def _unknown_form(engine: EngineUnderTest, route: str, answer: object) -> EngineMismatch:
    shown = repr(answer)
    shortened = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
    return EngineMismatch(f"{engine.url}{route} answers in an unknown form: {shortened}")
