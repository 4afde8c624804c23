"""Measures the CPU time of a request: our engine client, bare aiohttp, httpx over aiohttp, httpx with one pool.

    python benchmarks/engine_client.py

The engine is a mock in another process that answers after 20 ms, so only the CPU time of the client is measured. Every
client gets the same 1,000-token prompts and 32-token answers. Ours also checks the request, the prompt that the engine
saw, and every log-prob; the others only parse the JSON.
"""

import argparse
import asyncio
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection

import aiohttp
import httpx
import numpy as np
import orjson
import uvicorn
from httpx_aiohttp import HttpxAiohttpClient
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from renderers_adapter.tokens import ExpandedIds, as_logical_ids
from rollout.engine.client import EngineClient
from rollout.engine.protocol import encode_request
from rollout.engine.request import GenerateRequest

LATENCY = 0.020
PROMPT = as_logical_ids(np.arange(1000, dtype=np.int32))
ANSWER = list(range(32))
IN_FLIGHT = (128, 512, 2048)

Send = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What requests cost.

    Attributes:
        cpu: CPU milliseconds of this process for one request.
        rate: requests per second.
    """

    cpu: float
    rate: float


def main() -> int:
    """Measure and print the costs; return 1 if one of them is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=4096, help="requests per client and number in flight")
    parser.add_argument("--rounds", type=int, default=4, help="rounds; the cheapest one counts")
    arguments = parser.parse_args()
    port_receiver, port_sender = multiprocessing.Pipe(duplex=False)
    mock = multiprocessing.get_context("spawn").Process(target=serve, args=(port_sender,), daemon=True)
    mock.start()
    try:
        url = f"http://127.0.0.1:{port_receiver.recv()}"
        costs = asyncio.run(measure(url, arguments.rounds, arguments.requests))
    finally:
        mock.terminate()
        mock.join()
    return report(costs)


async def measure(url: str, rounds: int, requests: int) -> dict[tuple[str, int], Cost]:
    """Return the costs of the cheapest of several rounds, because other load on the machine only adds costs."""
    costs: dict[tuple[str, int], Cost] = {}
    for number in range(rounds):
        for in_flight in IN_FLIGHT:
            for name, client in CLIENTS.items():
                measured_once = name == "httpx, one pool"
                if measured_once and number:
                    continue
                async with AsyncExitStack() as stack:
                    send = await client(url, stack)
                    if not measured_once:
                        await run(send, in_flight, in_flight)  # opens the connections, without measuring
                    cost = await run(send, in_flight if measured_once else max(requests, in_flight), in_flight)
                    best = costs.setdefault((name, in_flight), cost)
                    costs[name, in_flight] = min(best, cost, key=lambda candidate: candidate.cpu)
    return costs


async def run(send: Send, count: int, in_flight: int) -> Cost:
    """Send `count` requests, with `in_flight` of them at the same time."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await send(number)

    wall, cpu = time.perf_counter(), _cpu()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return Cost((_cpu() - cpu) / count * 1000, count / (time.perf_counter() - wall))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def request(number: int) -> GenerateRequest:
    """Return the request that every client sends."""
    return GenerateRequest(
        request_id=f"benchmark-{number}",
        session_id=f"benchmark-{number}",
        prompt=PROMPT,
        images=(),
        expanded_prompt=ExpandedIds(PROMPT),
        known_token_count=0,
        placeholders=(),
        pad_id=None,
        sampling={"temperature": 1.0, "max_tokens": 32},
        stop_token_ids=(1,),
    )


async def ours(url: str, stack: AsyncExitStack) -> Send:
    """Open our engine client."""
    client = await stack.enter_async_context(EngineClient([url], "mock", timeout=120))
    return lambda number: client.generate(request(number))


async def bare_aiohttp(url: str, stack: AsyncExitStack) -> Send:
    """Open a session of aiohttp."""
    connector = aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

    async def send(number: int) -> object:
        body = encode_request(request(number), "mock", f"benchmark-{number}")
        async with session.post(f"{url}/inference/v1/generate", data=body, headers=JSON) as response:
            return orjson.loads(await response.read())

    return send


async def plain_httpx(url: str, stack: AsyncExitStack) -> Send:
    """Open a client of httpx with one pool."""
    return _through(await stack.enter_async_context(httpx.AsyncClient(limits=CONNECTION_LIMITS, timeout=120)), url)


async def httpx_over_aiohttp(url: str, stack: AsyncExitStack) -> Send:
    """Open a client of httpx that uses aiohttp."""
    return _through(await stack.enter_async_context(HttpxAiohttpClient(limits=CONNECTION_LIMITS, timeout=120)), url)


def _through(client: httpx.AsyncClient, url: str) -> Send:
    async def send(number: int) -> object:
        body = encode_request(request(number), "mock", f"benchmark-{number}")
        response = await client.post(f"{url}/inference/v1/generate", content=body, headers=JSON)
        return orjson.loads(response.content)

    return send


CONNECTION_LIMITS = httpx.Limits(max_connections=max(IN_FLIGHT), max_keepalive_connections=max(IN_FLIGHT))
JSON = {"content-type": "application/json"}
CLIENTS: dict[str, Callable[[str, AsyncExitStack], Awaitable[Send]]] = {
    "bare aiohttp": bare_aiohttp,
    "rollout": ours,
    "httpx over aiohttp": httpx_over_aiohttp,
    "httpx, one pool": plain_httpx,
}


def serve(port_sender: Connection) -> None:
    """Run the mock engine, which sends the same answer 20 ms after each request."""
    content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in ANSWER]
    choice = {"index": 0, "token_ids": ANSWER, "logprobs": {"content": content}, "finish_reason": "stop"}
    answer = orjson.dumps({"choices": [choice], "prompt_token_ids": PROMPT.tolist(), "mm_placeholders": None})

    async def generate(http: Request) -> Response:
        await http.body()
        await asyncio.sleep(LATENCY)
        return Response(answer, media_type="application/json")

    app = Starlette(routes=[Route("/inference/v1/generate", generate, methods=["POST"])])
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=60, backlog=4096)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port_sender.send(listener.getsockname()[1])
    uvicorn.Server(config).run([listener])


def report(costs: dict[tuple[str, int], Cost]) -> int:
    """Print the costs; return 1 if one of them is over its bound."""
    table = Table(title="CPU milliseconds of the client for one request (requests per second)")
    table.add_column("client")
    for in_flight in IN_FLIGHT:
        table.add_column(f"{in_flight:,} in flight", justify="right")
    for name in CLIENTS:
        row = [costs[name, in_flight] for in_flight in IN_FLIGHT]
        table.add_row(name, *(f"{cost.cpu:.3f} ({cost.rate:,.0f})" for cost in row))
    console = Console(width=100)
    console.print(table)
    own = [costs["rollout", in_flight].cpu for in_flight in IN_FLIGHT]
    largest_ratio = max(costs["rollout", n].cpu / costs["bare aiohttp", n].cpu for n in IN_FLIGHT)
    bounds = (
        (max(own) / min(own), 1.5, "rollout, largest cost / smallest cost"),
        (largest_ratio, 3.0, "rollout / bare aiohttp"),
    )
    for value, bound, description in bounds:
        console.print(f"{'ok ' if value <= bound else 'BAD'} {description}: {value:.2f} (at most {bound:g})")
    return int(any(found > bound for found, bound, _ in bounds))


if __name__ == "__main__":
    sys.exit(main())
