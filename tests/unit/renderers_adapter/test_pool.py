"""The pool: a model is loaded once, a renderer encodes one text at a time, and a long text does not block the loop."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter import pool as pools
from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefused
from renderers_adapter.errors import TooManyTokens
from renderers_adapter.families import UnknownRenderer
from renderers_adapter.pool import RendererPool, shared_pool
from renderers_adapter.rendered import RenderedMessages
from renderers_adapter.tokens import as_logical_ids

LONG = "a long text " * 4000


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class WatchedAdapter(RendererAdapter):
    """Records how many renderers encode at the same time and in which threads; `gate` makes a long text wait."""

    together = 0
    most = 0
    threads: set[str] = set()  # noqa: RUF012 - shared on purpose, by all renderers of a pool
    gate: threading.Event | None = None
    started: threading.Event
    used_concurrently = False

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None) -> RenderedMessages:
        kind = type(self)
        if self.__dict__.get("busy"):
            kind.used_concurrently = True
        self.__dict__["busy"] = True
        kind.together += 1
        kind.most = max(kind.most, kind.together)
        kind.threads.add(threading.current_thread().name)
        if kind.gate is not None and messages[0]["content"] is LONG:
            kind.started.set()
            kind.gate.wait(10)
        try:
            return super().render(messages, tools)
        finally:
            kind.together -= 1
            self.__dict__["busy"] = False

    def clone(self) -> "WatchedAdapter":
        made = super().clone()
        made.__class__ = type(self)
        return made  # type: ignore[return-value]


@pytest.fixture
def watched(adapter: RendererAdapter) -> type[WatchedAdapter]:
    return type("WatchedHere", (WatchedAdapter,), {"threads": set(), "started": threading.Event()})


def pool_of(adapter: RendererAdapter, kind: type[WatchedAdapter], size: int) -> RendererPool:
    first = adapter.clone()
    first.__class__ = kind
    return RendererPool(first, size=size)


def test_a_model_is_loaded_once_for_many_threads(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    opened = RendererAdapter.open

    def slowly(*arguments: Any) -> RendererAdapter:
        loads.append(arguments)
        return opened(*arguments)

    monkeypatch.setattr(RendererAdapter, "open", slowly)
    monkeypatch.setattr(pools, "_pools", {})
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: shared_pool(tiny_model, "qwen3-vl"), range(16)))
    assert len(loads) == 1
    assert len({id(pool) for pool in found}) == 1
    assert shared_pool(tiny_model, "qwen3") is not found[0]


def test_a_load_that_failed_is_tried_again(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_pools", {})
    for _ in range(2):
        with pytest.raises(UnknownRenderer):
            shared_pool(tiny_model, "qwen9")
    assert not pools._pools


async def test_short_texts_are_encoded_on_the_loop_and_long_ones_in_a_thread(
    adapter: RendererAdapter, watched: type[WatchedAdapter]
) -> None:
    pool = pool_of(adapter, watched, 2)
    await pool.render(user("short"), None)
    assert watched.threads == {threading.current_thread().name}
    await pool.render(user(LONG), None)
    assert len(watched.threads) == 2


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([*user("a"), {"role": "assistant", "content": "b", "reasoning_content": LONG}, *user("c")], None),
        ([*user("a"), {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": LONG}}]}], None),
        ([{"role": "user", "content": [{"type": "text", "text": LONG}]}], None),
        (user("a"), [{"type": "function", "function": {"name": "look", "description": LONG}}]),
    ],
    ids=["reasoning", "a call", "a part", "a tool"],
)
async def test_every_part_of_a_conversation_counts_as_long_text(
    adapter: RendererAdapter, watched: type[WatchedAdapter], messages: list[dict[str, Any]], tools: Any
) -> None:
    await pool_of(adapter, watched, 1).render(messages, tools)
    assert threading.current_thread().name not in watched.threads


async def test_the_loop_goes_on_while_a_long_text_is_encoded(
    adapter: RendererAdapter, watched: type[WatchedAdapter]
) -> None:
    pool = pool_of(adapter, watched, 2)
    watched.gate = threading.Event()
    long = asyncio.create_task(pool.render(user(LONG), None))
    await asyncio.to_thread(watched.started.wait, 10)
    rendered = await pool.render(user("short"), None)
    assert not long.done()
    assert len(rendered.segments) == 1
    watched.gate.set()
    assert len((await long).segments) == 1


async def test_a_renderer_encodes_one_text_at_a_time_and_the_pool_has_a_maximum_size(
    adapter: RendererAdapter, watched: type[WatchedAdapter]
) -> None:
    pool = pool_of(adapter, watched, 3)
    await asyncio.gather(*(pool.render(user(f"{LONG}{n}"), None) for n in range(12)))
    assert not watched.used_concurrently
    assert watched.most <= 3


async def test_a_refused_bridge_returns_its_renderer_to_the_pool(adapter: RendererAdapter) -> None:
    pool = RendererPool(adapter, size=1)
    opening = adapter.render(user("Hi"), None).generation_prompt
    for _ in range(2):
        with pytest.raises(BridgeRefused):
            await pool.bridge([], opening, as_logical_ids([1]), [{"role": "assistant", "content": "a"}], None)
    assert len((await pool.render(user("Hi"), None)).segments) == 1


def test_a_text_model_has_a_pool_without_geometry(tiny_model: Path) -> None:
    pool = shared_pool(tiny_model, "qwen3")
    assert (pool.geometry, pool.pad_id) == (None, None)
    assert pool.stop_token_ids == shared_pool(tiny_model, "qwen3-vl").stop_token_ids


FAR_TOO_LONG = "a b " * 30_000


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([{"role": "user", "content": FAR_TOO_LONG}], None),
        ([{"role": "user", "content": [{"type": "text", "text": FAR_TOO_LONG}]}], None),
        (
            [{"role": "user", "content": "a"}],
            [{"type": "function", "function": {"name": "f", "parameters": {"description": FAR_TOO_LONG}}}],
        ),
    ],
    ids=["text", "part", "tool"],
)
async def test_texts_that_are_far_too_long_are_refused_before_all_of_them_is_encoded(
    adapter: RendererAdapter, monkeypatch: pytest.MonkeyPatch, messages: Any, tools: Any
) -> None:
    pool = RendererPool(adapter)
    monkeypatch.setattr(adapter, "render", None)
    with pytest.raises(TooManyTokens, match="more than 1,000 tokens"):
        await pool.render(messages, tools, token_limit=1000)


async def test_a_long_text_of_few_tokens_is_rendered(adapter: RendererAdapter) -> None:
    messages = [{"role": "user", "content": " assistant" * 3_000}]
    rendered = await RendererPool(adapter).render(messages, None, token_limit=3_100)
    assert len(rendered.generation_prompt)


async def test_white_space_that_a_template_may_cut_does_not_count(adapter: RendererAdapter) -> None:
    messages = [{"role": "user", "content": f"{' a' * 20}{chr(10) * 40_000}"}]
    await RendererPool(adapter).render(messages, None, token_limit=500)
