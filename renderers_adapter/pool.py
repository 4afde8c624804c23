"""Lets many rollouts share a few renderers of a model.

    pool = await anyio.to_thread.run_sync(shared_pool, directory, "qwen3-vl")
    rendered = await pool.render(messages, tools)

A renderer encodes one text at a time. Short texts are encoded on the event loop, because a switch to a thread would
cost more. Long texts are encoded in a thread, so that other rollouts can continue.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import TooManyTokens
from renderers_adapter.geometry import Geometry
from renderers_adapter.options import RendererOptions
from renderers_adapter.rendered import ParsedCompletion, RenderedMessages
from renderers_adapter.tokenizer import FastTokenizer
from renderers_adapter.tokens import LogicalIds

_DEFAULT_POOL_SIZE = 4
_INLINE_CHARACTERS = 20_000
"""The maximum length of texts that are encoded on the event loop, which takes a few milliseconds at most."""

_CHARACTERS_OF_A_KNOWN_MESSAGE = 100
"""To render a message again with a chat template takes as long as to encode so many characters."""

_CHARACTERS_OF_A_TOKEN = 8
"""Texts with fewer characters for each token that fits are encoded without a check; they may fit."""
_TOKENS_AT_A_CUT = 4
"""A text that is cut, or encoded alone, may have a few more tokens than in its place."""

_T = TypeVar("_T")
_Messages = Sequence[Mapping[str, Any]]


class RendererPool:
    """An asynchronous `RendererAdapter` that uses up to `size` renderers of one model at the same time."""

    def __init__(self, adapter: RendererAdapter, *, size: int = _DEFAULT_POOL_SIZE) -> None:
        self.tokenizer: FastTokenizer = adapter.tokenizer
        self.geometry: Geometry | None = adapter.geometry
        self.pad_id: int | None = adapter.pad_id
        self.media_ids: tuple[int, ...] = adapter.media_ids
        self.stop_token_ids: tuple[int, ...] = adapter.stop_token_ids
        self._prototype = adapter.clone()
        self._idle = [adapter]
        self._semaphore = anyio.Semaphore(size, fast_acquire=True)

    async def render(
        self, messages: _Messages, tools: _Messages | None, *, token_limit: int | None = None
    ) -> RenderedMessages:
        """See `RendererAdapter.render`.

        Raises:
            TooManyTokens: the texts have more tokens than `token_limit`. Only far too long texts are refused.
        """
        character_count = _count_characters(messages) + _count_characters(tools or ())
        require_room = partial(self._require_room, character_count, token_limit, messages, tools or ())
        return await self._run_encoder(character_count, require_room, lambda adapter: adapter.render(messages, tools))

    async def bridge(
        self,
        conversation: _Messages,
        parse_prefix: LogicalIds,
        completion: LogicalIds,
        messages: _Messages,
        tools: _Messages | None,
        *,
        token_limit: int | None = None,
    ) -> RenderedMessages:
        """See `RendererAdapter.bridge`, and `render` for `token_limit`."""
        character_count = _count_characters(messages)
        require_room = partial(self._require_room, character_count, token_limit, messages, ())
        if self._prototype.bridges_with_whole_conversation:
            character_count += _count_known(conversation)
        return await self._run_encoder(
            character_count,
            require_room,
            lambda adapter: adapter.bridge(conversation, parse_prefix, completion, messages, tools),
        )

    def parse(
        self, parse_prefix: LogicalIds, completion: LogicalIds, tools: _Messages | None = None
    ) -> ParsedCompletion:
        """Parse a completion; see `RendererAdapter.parse`. Parsing does not wait for a free renderer."""
        return self._prototype.parse(parse_prefix, completion, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, including special tokens."""
        return self._prototype.tokenizer.decode(list(token_ids))

    def _require_room(
        self, character_count: int, token_limit: int | None, messages: _Messages, tools: _Messages
    ) -> None:
        """Raise TooManyTokens if the beginning of very long texts has too many tokens: all of it may take a minute."""
        if token_limit is None or (left := token_limit * _CHARACTERS_OF_A_TOKEN) >= character_count:
            return
        tokens = 0
        for text in _rendered_texts(messages, tools):
            beginning = text[:left]
            left -= len(beginning)
            tokens += max(0, len(self.tokenizer.encode(beginning)) - _TOKENS_AT_A_CUT)
            if tokens > token_limit:
                raise TooManyTokens(f"the messages have more than {token_limit:,} tokens.")

    async def _run_encoder(
        self, character_count: int, require_room: Callable[[], None], operation: Callable[[RendererAdapter], _T]
    ) -> _T:
        async with self._semaphore:
            adapter = self._idle.pop() if self._idle else self._prototype.clone()
            try:
                if character_count <= _INLINE_CHARACTERS:
                    return operation(adapter)

                def encode() -> _T:
                    require_room()
                    return operation(adapter)

                return await anyio.to_thread.run_sync(encode)
            finally:
                self._idle.append(adapter)


def shared_pool(
    directory: Path,
    renderer: str,
    options: RendererOptions | None = None,
) -> RendererPool:
    """Return the pool of a model, which the whole process shares. The first caller loads the model, and others wait.

    Raises:
        AdapterError: the model cannot be loaded; see `RendererAdapter.open`. All waiting callers get the error, and the
            next caller tries again.
    """
    key = (directory.resolve(), renderer, repr(options or RendererOptions()))
    with _pools_lock:
        future = _pools.get(key)
        if must_load := future is None:
            future = _pools[key] = Future()
    assert future is not None
    if must_load:
        try:
            future.set_result(RendererPool(RendererAdapter.open(directory, renderer, options)))
        except BaseException as error:  # noqa: BLE001 - every error must reach the waiting callers
            with _pools_lock:
                del _pools[key]
            future.set_exception(error)
    return future.result()


def _rendered_texts(messages: _Messages, tools: _Messages) -> Iterator[str]:
    """Yield the texts that every template renders, without the white space around them."""
    for message in messages:
        content = message.get("content")
        for text in [content] if isinstance(content, str) else [part.get("text") for part in content or ()]:
            if isinstance(text, str):
                yield text.strip()
    for tool in tools:
        yield from _all_texts(tool.get("function"))


def _all_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _all_texts(inner)


def _count_characters(value: Any) -> int:
    """Return the total number of characters of all texts in messages or tools."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_count_characters, value.values()))
    return sum(map(_count_characters, value)) if isinstance(value, list | tuple) else 0


def _count_known(messages: _Messages) -> int:
    """Return the number of characters that take as long as the known messages; if they are too many, only a part."""
    count = 0
    for message in reversed(messages):
        count += _CHARACTERS_OF_A_KNOWN_MESSAGE + _count_characters(message)
        if count > _INLINE_CHARACTERS:
            break
    return count


_pools_lock = threading.Lock()
_pools: dict[tuple[Path, str, str], Future[RendererPool]] = {}
