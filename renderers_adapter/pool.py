"""A few renderers for many rollouts.

    pool = await anyio.to_thread.run_sync(shared_pool, directory, "qwen3-vl")
    rendered = await pool.render(messages, tools)

A renderer encodes one thing at a time. Short texts are encoded at once on the event loop, which costs less than handing
them to a thread; long ones are encoded in a thread, so that no other rollout stands still meanwhile. However many ask
for the same model at the same time, it is loaded once.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.geometry import Geometry
from renderers_adapter.rendered import Parsed, Rendered
from renderers_adapter.tokenizer import FastTokenizer
from renderers_adapter.tokens import LogicalIds

_SIZE = 4
_INLINE_CHARACTERS = 20_000
"""Characters of text up to which encoding takes less than a few milliseconds, and stays on the event loop."""

_T = TypeVar("_T")
_Messages = Sequence[Mapping[str, Any]]


class RendererPool:
    """The adapter's contract, awaitable, over up to `size` renderers of one model; text-only or not makes no odds."""

    def __init__(self, first: RendererAdapter, *, size: int = _SIZE) -> None:
        self.tokenizer: FastTokenizer = first.tokenizer
        self.geometry: Geometry | None = first.geometry
        self.pad_id: int | None = first.pad_id
        self.stop_token_ids: tuple[int, ...] = first.stop_token_ids
        self._spare = first.another()
        self._idle = [first]
        self._turnstile = anyio.Semaphore(size, fast_acquire=True)

    async def render(self, messages: _Messages, tools: _Messages | None) -> Rendered:
        """See `RendererAdapter.render`."""
        length = _characters(messages) + _characters(tools or ())
        return await self._encode(length, lambda adapter: adapter.render(messages, tools))

    async def bridge(
        self, opening: LogicalIds, completion: LogicalIds, messages: _Messages, tools: _Messages | None
    ) -> Rendered:
        """See `RendererAdapter.bridge`."""
        length = _characters(messages)
        return await self._encode(length, lambda adapter: adapter.bridge(opening, completion, messages, tools))

    def parse(self, opening: LogicalIds, completion: LogicalIds, tools: _Messages | None = None) -> Parsed:
        """See `RendererAdapter.parse`. It only decodes, and never waits for one that encodes."""
        return self._spare.parse(opening, completion, tools)

    async def _encode(self, length: int, work: Callable[[RendererAdapter], _T]) -> _T:
        async with self._turnstile:
            adapter = self._idle.pop() if self._idle else self._spare.another()
            try:
                if length <= _INLINE_CHARACTERS:
                    return work(adapter)
                return await anyio.to_thread.run_sync(work, adapter)
            finally:
                self._idle.append(adapter)


def shared_pool(directory: Path, renderer: str, template: Mapping[str, Any] | None = None) -> RendererPool:
    """The process's one pool for a model; the first who asks loads it, in the calling thread, and the others wait.

    Raises:
        AdapterError: see `RendererAdapter.open`. It is raised to all who waited; the next to ask tries again.
    """
    key = (directory.resolve(), renderer, json.dumps(template or {}, sort_keys=True))
    with _opening:
        opened = _pools.get(key)
        if mine := opened is None:
            opened = _pools[key] = Future()
    assert opened is not None
    if mine:
        try:
            opened.set_result(RendererPool(RendererAdapter.open(directory, renderer, template)))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            with _opening:
                del _pools[key]
            opened.set_exception(error)
    return opened.result()


def _characters(value: Any) -> int:
    """All text in messages or tools, whatever it is: content, reasoning, what a call is given, descriptions."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


_opening = threading.Lock()
_pools: dict[tuple[Path, str, str], Future[RendererPool]] = {}
