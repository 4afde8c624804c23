"""Serves the conversations of `gateway.py` with verifiers 0.4.0: its interception server, its `TrainClient`, its graph.

The renderer, the tokenizer and the engine stub are the same as ours. As with verifiers' own rollouts, all conversations
share one server and one client, each has its own session and key, and 256 of them share a renderer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection

from renderers import config_from_name, create_renderer
from verifiers.v1 import WireTrace
from verifiers.v1.clients import ModelContext
from verifiers.v1.clients.train import ElasticRendererPool, RendererSlot
from verifiers.v1.configs.client import TrainClientConfig
from verifiers.v1.interception.server import InterceptionServer
from verifiers.v1.session import RolloutSession
from verifiers.v1.types import SamplingConfig

from benchmarks.engine_stub import MODEL
from benchmarks.gateway_driver import Address, Recorded, serve_commands
from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.embedded import TINY_MODEL

_RENDERERS = 4


def serve_theirs(connection: Connection, engine_url: str) -> None:
    """Serve conversations until the driver closes the connection."""
    asyncio.run(_serve(connection, engine_url))


async def _serve(connection: Connection, engine_url: str) -> None:
    config = config_from_name("qwen3-vl")
    client = TrainClientConfig(base_url=f"{engine_url}/v1", renderer=config, renderer_model_name=MODEL)
    pool = ElasticRendererPool(MODEL, config, multiplex=client.multiplex)
    for _ in range(_RENDERERS):
        pool.renderers.append(RendererSlot(create_renderer(load_tokenizer(TINY_MODEL), config)))
    context = ModelContext(MODEL, client, SamplingConfig(temperature=0.0, max_tokens=64))

    async with InterceptionServer() as server:

        @asynccontextmanager
        async def open_conversations(
            count: int,
        ) -> AsyncIterator[tuple[Sequence[Address], Callable[[], Sequence[Recorded]]]]:
            sessions = [RolloutSession(ctx=context, trace=_new_trace()) for _ in range(count)]
            async with AsyncExitStack() as stack:
                slots = [await stack.enter_async_context(server.acquire(session)) for session in sessions]
                yield [Address(f"{url}/v1", key, MODEL) for url, key, _ in slots], lambda: _read_records(sessions)

        await serve_commands(connection, open_conversations)


def _new_trace() -> WireTrace:
    return WireTrace.model_validate(
        {"task": {"type": "Task", "data": {"idx": 0, "prompt": ""}}, "agent": {"config": {}}}
    )


def _read_records(sessions: Sequence[RolloutSession]) -> list[Recorded]:
    traces = [session.trace for session in sessions]
    return [Recorded(sum(node.sampled for node in trace.nodes), len(trace.branches)) for trace in traces]
