"""The same turns through verifiers 0.4.0: its dialect, its message graph, its `TrainClient`, against an engine stub.

The stub lives in a process of its own and answers at once: one pad token becomes the 49 tokens of a 224x224 image, and
"red" is what is sampled. The renderer is the one that we use, over the same tokenizer.
"""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from renderers import config_from_name, create_renderer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from verifiers.v1 import WireTrace
from verifiers.v1.clients.train import ElasticRendererPool, RendererSlot, TrainClient
from verifiers.v1.configs.client import TrainClientConfig
from verifiers.v1.dialects import ChatDialect
from verifiers.v1.graph import prepare_turn
from verifiers.v1.types import SamplingConfig

from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.embedded import TINY_MODEL

MODEL = "tiny"
IMAGE_TOKENS = 49


async def theirs(directory: Path, ask: Callable[[int], Any], turns: int, rollouts: int) -> list[float]:
    """CPU milliseconds of each turn, the median of the rollouts."""
    tokenizer = load_tokenizer(TINY_MODEL)
    config = config_from_name("qwen3-vl")
    with stub(tokenizer.token_id("<|image_pad|>"), [*tokenizer.encode("red"), tokenizer.token_id("<|im_end|>")]) as url:
        settings = TrainClientConfig(base_url=url, renderer=config, renderer_model_name=MODEL)
        pool = ElasticRendererPool(MODEL, config, multiplex=settings.multiplex)
        pool.renderers.append(RendererSlot(create_renderer(tokenizer, config)))
        client = TrainClient(settings)
        runs = [await one_rollout(client, ask, turns) for _ in range(1 + rollouts)][1:]
        await client.close()
    return [sorted(turn)[len(turn) // 2] for turn in zip(*runs, strict=True)]


async def one_rollout(client: TrainClient, ask: Callable[[int], Any], turns: int) -> list[float]:
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


@contextmanager
def stub(pad: int, completion: list[int]) -> Iterator[str]:
    """The engine stub's OpenAI-style root."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = context.Process(target=_serve, args=(port, pad, completion), daemon=True)
    process.start()
    try:
        _await(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.join(10)


def _await(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the engine stub did not come up")


def _serve(port: int, pad: int, completion: list[int]) -> None:
    logprobs = {"content": [{"token": f"token_id:{token}", "logprob": -0.1} for token in completion]}
    choice = {"index": 0, "token_ids": completion, "logprobs": logprobs, "finish_reason": "stop"}

    async def generate(http: Request) -> Response:
        prompt = orjson.loads(await http.body())["token_ids"]
        expanded: list[int] = []
        ranges = []
        for token in prompt:
            if token == pad:
                ranges.append({"offset": len(expanded), "length": IMAGE_TOKENS})
            expanded += [token] * (IMAGE_TOKENS if token == pad else 1)
        answer = {
            "request_id": "generate-tokens-0",
            "choices": [choice],
            "prompt_token_ids": expanded,
            "mm_placeholders": {"image": ranges},
            "usage": {"prompt_tokens": len(expanded), "completion_tokens": 2, "total_tokens": len(expanded) + 2},
        }
        return Response(orjson.dumps(answer), media_type="application/json")

    async def models(http: Request) -> Response:
        listed = {"data": [{"id": MODEL, "object": "model", "max_model_len": 1 << 20}]}
        return Response(orjson.dumps(listed), media_type="application/json")

    routes = [Route("/inference/v1/generate", generate, methods=["POST"]), Route("/v1/models", models)]
    config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="critical")
    asyncio.run(uvicorn.Server(config).serve())
