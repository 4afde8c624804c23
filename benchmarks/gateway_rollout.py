"""Serves the conversations of `gateway.py` with the gateway, as a worker does: one server, one endpoint per attempt."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.engine_stub import MODEL
from benchmarks.gateway_driver import Address, Recorded, serve_commands
from renderers_adapter.pool import shared_pool
from rollout.config.gateway import GatewayConfig
from rollout.engine.client import EngineClient
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.log import log_to_json_file
from rollout.metrics.worker import WorkerMetrics
from rollout.records.gateway_counts import GatewayCount
from rollout.records.stream import AttemptId, RolloutStream
from rollout.serving.embedded import TINY_MODEL
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from transports import Queue, open_queue


def serve_ours(connection: Connection, engine_url: str, directory: str) -> None:
    """Serve conversations until the driver closes the connection."""
    with log_to_json_file(Path(directory) / "log.jsonl"):
        asyncio.run(_serve(connection, engine_url, Path(directory)))


async def _serve(connection: Connection, engine_url: str, directory: Path) -> None:
    metrics = WorkerMetrics("benchmark")
    renderers, images = shared_pool(TINY_MODEL, "qwen3-vl"), ImagePolicy("offload", directory)
    async with (
        EngineClient([engine_url], MODEL, timeout=600) as engine,
        open_queue(f"memory://{uuid.uuid4().hex}") as queue,
        Gateway(GatewayConfig(), model=MODEL, metrics=metrics) as gateway,
        asyncio.TaskGroup() as group,
    ):
        await engine.check()
        consumer = group.create_task(_consume(queue))
        policy = PolicyClient(
            renderers, engine, images, {"temperature": 0.0}, metrics=metrics, open_endpoint=gateway.open_endpoint
        )

        @asynccontextmanager
        async def open_conversations(
            count: int,
        ) -> AsyncIterator[tuple[Sequence[Address], Callable[[], Sequence[Recorded]]]]:
            sessions = [_new_session(policy, queue) for _ in range(count)]
            async with AsyncExitStack() as stack:
                endpoints = [await stack.enter_async_context(session.endpoint()) for session in sessions]
                addresses = [Address(endpoint.base_url, endpoint.key, endpoint.model) for endpoint in endpoints]
                yield addresses, lambda: [_read_record(session) for session in sessions]

        await serve_commands(connection, open_conversations)
        consumer.cancel()


def _new_session(policy: PolicyClient, queue: Queue) -> Session:
    return Session(policy, RolloutStream(queue, AttemptId("benchmark", "gateway", uuid.uuid4().hex, "0.0", 0, 1, 1)))


async def _consume(queue: Queue) -> None:
    """Ack the records; a trainer would do it in another process."""
    while True:
        delivery = await queue.receive(timeout=60)
        if delivery is not None:
            await delivery.ack()


def _read_record(session: Session) -> Recorded:
    counts = session.counters.gateway
    return Recorded(counts[GatewayCount.TURNS], counts[GatewayCount.TURNS] - counts[GatewayCount.BRIDGED])
