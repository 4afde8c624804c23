"""An engine in its own process that answers every request at once, so that only the client's work is measured.

Each pad token becomes the 64 tokens of a 224x224 image. The sampled answer is always the same, "red" if the caller
does not choose another.
"""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.embedded import TINY_MODEL

MODEL = "tiny-qwen3-vl"
_IMAGE_TOKENS = 64


@contextmanager
def running_stub(answer: str = "red") -> Iterator[str]:
    """Run the stub, which always answers with the text `answer`; yield its root URL."""
    tokenizer = load_tokenizer(TINY_MODEL)
    completion = [*tokenizer.encode(answer), tokenizer.token_id("<|im_end|>")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (port, tokenizer.token_id("<|image_pad|>"), completion)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
    process.start()
    try:
        _wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join(10)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the engine stub did not start within 60 s")


def _serve(port: int, pad: int, completion: list[int]) -> None:
    logprobs = {"content": [{"token": f"token_id:{token}", "logprob": -0.1} for token in completion]}
    choice = {"index": 0, "token_ids": completion, "logprobs": logprobs, "finish_reason": "stop"}

    async def generate(http: Request) -> Response:
        prompt = orjson.loads(await http.body())["token_ids"]
        expanded: list[int] = []
        ranges = []
        for token in prompt:
            if token == pad:
                ranges.append({"offset": len(expanded), "length": _IMAGE_TOKENS})
            expanded += [token] * (_IMAGE_TOKENS if token == pad else 1)
        counts = len(expanded), len(completion)
        answer = {
            "request_id": "generate-tokens-0",
            "choices": [choice],
            "prompt_token_ids": expanded,
            "mm_placeholders": {"image": ranges},
            "usage": {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)},
        }
        return Response(orjson.dumps(answer), media_type="application/json")

    async def models(http: Request) -> Response:
        listed = {"data": [{"id": MODEL, "object": "model", "max_model_len": 1 << 20}]}
        return Response(orjson.dumps(listed), media_type="application/json")

    routes = [Route("/inference/v1/generate", generate, methods=["POST"]), Route("/v1/models", models)]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=port, log_level="critical", timeout_keep_alive=600
    )
    asyncio.run(uvicorn.Server(config).serve())
