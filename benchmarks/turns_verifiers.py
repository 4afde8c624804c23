"""Measures the turns of `turns.py` with verifiers 0.4.0: its dialect, its message graph, its `TrainClient`.

The renderer, the tokenizer and the engine stub are the same as for our turns.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from renderers import config_from_name, create_renderer
from verifiers.v1 import WireTrace
from verifiers.v1.clients.train import ElasticRendererPool, RendererSlot, TrainClient
from verifiers.v1.configs.client import TrainClientConfig
from verifiers.v1.dialects import ChatDialect
from verifiers.v1.graph import prepare_turn
from verifiers.v1.types import SamplingConfig

from benchmarks.engine_stub import MODEL, running_stub
from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.embedded import TINY_MODEL


async def measure_theirs(directory: Path, ask: Callable[[int], Any], turns: int, rollouts: int) -> list[float]:
    """Return the CPU milliseconds of each turn, as the median of the rollouts."""
    tokenizer = load_tokenizer(TINY_MODEL)
    config = config_from_name("qwen3-vl")
    with running_stub() as url:
        settings = TrainClientConfig(base_url=f"{url}/v1", renderer=config, renderer_model_name=MODEL)
        pool = ElasticRendererPool(MODEL, config, multiplex=settings.multiplex)
        pool.renderers.append(RendererSlot(create_renderer(tokenizer, config)))
        client = TrainClient(settings)
        runs = [await one_rollout(client, ask, turns) for _ in range(1 + rollouts)][1:]
        await client.close()
    return [sorted(turn)[len(turn) // 2] for turn in zip(*runs, strict=True)]


async def one_rollout(client: TrainClient, ask: Callable[[int], Any], turns: int) -> list[float]:
    """Play one rollout; return the CPU milliseconds of each turn."""
    dialect, sampling = ChatDialect(), SamplingConfig(temperature=0.0, max_tokens=64)
    trace = WireTrace.model_validate(
        {"task": {"type": "Task", "data": {"idx": 0, "prompt": ""}}, "agent": {"config": {}}}
    )
    conversation: list[dict[str, Any]] = []
    spent = []
    for turn in range(turns):
        conversation.append(ask(turn))
        body = {"model": MODEL, "messages": conversation}
        began = time.process_time()
        request = dialect.parse_request(body)
        pending = prepare_turn(trace, request.messages, request.tools)
        response = await client.get_response(dialect, body, sampling, session_id="0", turn=pending)
        pending.commit(response)
        spent.append(1000 * (time.process_time() - began))
        conversation.append({"role": "assistant", "content": response.message.content})
    return spent
