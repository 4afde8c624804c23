"""Plays conversations over HTTP as agents do, and measures the CPU time of the process that serves them.

Every request carries the whole conversation, with tool calls and their results, as the openai SDK sends it. All
conversations of a wave send their next turn at once, and the next wave starts when all have their answers. The driver
checks every answer, so a server that fails is not counted as fast. Its own CPU time is not counted.
"""

import asyncio
import base64
import io
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import aiohttp
import orjson

from benchmarks.conversation_parts import WORDS, noisy_jpeg

REASON = "I look at the next place."
ARGUMENTS = {"place": "left", "size": 3}
ANSWER = f"{REASON}\n<tool_call>\n{json.dumps({'name': 'look', 'arguments': ARGUMENTS})}\n</tool_call>"
SYSTEM = "You search a painting. Call the tool look until you have found the red square, then answer."
HALF_WINDOW = 2
_SETTLE_SECONDS = 0.03

_picture = cache(noisy_jpeg)


class Address(NamedTuple):
    """Where the program of one conversation sends its requests.

    Attributes:
        base_url: the base URL of chat completions; ends in `/v1`.
        key: the bearer key, which is the conversation's own.
        model: the name of the model.
    """

    base_url: str
    key: str
    model: str


class Recorded(NamedTuple):
    """What a server has recorded of one conversation.

    Attributes:
        turns: the number of sampled messages.
        branches: the number of branches; 1 if every turn continued the one before.
    """

    turns: int
    branches: int


OpenConversations = Callable[
    [int], AbstractAsyncContextManager[tuple[Sequence[Address], Callable[[], Sequence[Recorded]]]]
]


def tool(name: str, description: str) -> dict[str, Any]:
    """Return the schema of a tool."""
    properties = {"place": {"type": "string", "description": "Where."}, "size": {"type": "integer", "minimum": 1}}
    parameters = {"type": "object", "properties": properties, "required": ["place"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("look", "Look at a place of the painting."),
    tool("mark", "Mark a place."),
    tool("erase", "Erase a mark."),
]


def picture_url(conversation: str, turn: int) -> str:
    """Return the picture of a turn as `data:` URI. A comment in the file makes each one different from all others."""
    comment = f"{conversation}, turn {turn}".encode()
    jpeg = _picture(turn)
    file = jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
    return "data:image/jpeg;base64," + base64.b64encode(file).decode()


class Conversation:
    """One conversation, as the bytes of its next request. They grow by the new messages of each turn."""

    def __init__(self, name: str, address: Address, *, images: bool) -> None:
        self.prompt_tokens = 0
        self._name = name
        self._address = address
        self._images = images
        self._turn = 1
        question = {"role": "user", "content": f"Conversation {name}. Where is the red square?"}
        self._messages = bytearray(orjson.dumps({"role": "system", "content": SYSTEM}))
        self._add([question])
        self._start = b'{"model":' + orjson.dumps(address.model) + b',"messages":['
        self._end = b'],"tools":' + orjson.dumps(TOOLS) + b',"temperature":0.0,"max_tokens":64}'

    def body(self) -> bytes:
        """Return the body of the next request."""
        return b"".join((self._start, self._messages, self._end))

    async def play_turn(self, client: aiohttp.ClientSession) -> None:
        """Send the next request, check its answer, and add the answer and the tool's result to the conversation."""
        headers = {"Authorization": f"Bearer {self._address.key}", "Content-Type": "application/json"}
        url = f"{self._address.base_url}/chat/completions"
        async with client.post(url, data=io.BytesIO(self.body()), headers=headers) as response:
            text = await response.read()
        where = f"conversation {self._name}, turn {self._turn}"
        if response.status != 200:
            raise RuntimeError(f"{where}: status {response.status}: {text[:500]!r}")
        answer = orjson.loads(text)
        choice = answer["choices"][0]
        message = {key: value for key, value in choice["message"].items() if value is not None}
        call = message["tool_calls"][0]
        right = (
            choice["finish_reason"] == "tool_calls"
            and message["content"].strip() == REASON
            and len(message["tool_calls"]) == 1
            and call["function"]["name"] == "look"
            and orjson.loads(call["function"]["arguments"]) == ARGUMENTS
        )
        if not right:
            raise RuntimeError(f"{where}: the answer is not what the engine sampled: {text[:500]!r}")
        self.prompt_tokens = answer["usage"]["prompt_tokens"]
        self._add([message, *self._observe(call["id"])])
        self._turn += 1

    def _observe(self, call_id: str) -> list[dict[str, Any]]:
        words = (WORDS * 5)[self._turn % 7 :][: 5 if self._images else 25]
        text = f"Turn {self._turn}. " + " ".join(words)
        result = {"role": "tool", "tool_call_id": call_id, "content": text}
        if not self._images:
            return [result]
        url = {"url": picture_url(self._name, self._turn)}
        question = {"type": "text", "text": "This is what the tool has seen."}
        return [result, {"role": "user", "content": [question, {"type": "image_url", "image_url": url}]}]

    def _add(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            self._messages += b"," + orjson.dumps(message)


@dataclass(slots=True)
class Window:
    """The turns around one turn, measured together.

    Attributes:
        milliseconds: CPU milliseconds of the serving process for one turn.
        bodies: the bodies of the first conversation.
        prompt_tokens: the tokens of the first conversation's last prompt, as the server counts them.
    """

    milliseconds: float = 0.0
    bodies: list[bytes] = field(default_factory=list)
    prompt_tokens: int = 0


class ServingProcess:
    """A process that serves conversations; see `serve_commands`."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self._clock = (~pid << 3) | 2  # the CPU clock of another process on Linux, as of clock_getcpuclockid(3)
        self._connection = connection
        self._rounds = 0

    def cpu_seconds(self) -> float:
        """Return how many seconds of CPU time the process has used, with all threads."""
        return time.clock_gettime(self._clock)

    async def play(self, count: int, turns: Sequence[int], *, images: bool) -> dict[int, Window]:
        """Play `count` conversations at once; return the windows around `turns`."""
        self._rounds += 1
        addresses = await self._ask(count)
        names = [f"{self._rounds}-{number}" for number in range(count)]
        conversations = [
            Conversation(name, Address(*address), images=images) for name, address in zip(names, addresses, strict=True)
        ]
        windows = {turn: Window() for turn in turns}
        last = max(turns) + HALF_WINDOW
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client:
            for turn in range(1, last + 1):
                window = windows.get(_centre(turn, turns))
                if window is not None:
                    window.bodies.append(conversations[0].body())
                    if len(window.bodies) == 1:
                        await asyncio.sleep(_SETTLE_SECONDS)
                        began = self.cpu_seconds()
                async with asyncio.TaskGroup() as wave:
                    for conversation in conversations:
                        wave.create_task(conversation.play_turn(client))
                if window is not None and len(window.bodies) == 2 * HALF_WINDOW + 1:
                    await asyncio.sleep(_SETTLE_SECONDS)
                    played = count * len(window.bodies)
                    window.milliseconds = 1000 * (self.cpu_seconds() - began) / played
                    window.prompt_tokens = conversations[0].prompt_tokens
        for name, recorded in zip(names, await self._ask(None), strict=True):
            if recorded != (last, 1):
                raise RuntimeError(f"conversation {name} has (turns, branches) {recorded} instead of {(last, 1)}")
        return windows

    async def _ask(self, command: int | None) -> Any:
        self._connection.send(command)
        return await asyncio.to_thread(self._connection.recv)


def _centre(turn: int, turns: Sequence[int]) -> int:
    return next((centre for centre in turns if abs(turn - centre) <= HALF_WINDOW), 0)


@contextmanager
def serving_process(serve: Callable[..., None], *arguments: Any) -> Iterator[ServingProcess]:
    """Run `serve(connection, *arguments)` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield ServingProcess(process.pid, ours)
    finally:
        ours.close()
        process.join(20)
        if process.is_alive():
            process.kill()


async def serve_commands(connection: Connection, open_conversations: OpenConversations) -> None:
    """Serve the driver in the serving process: open conversations, and close them after the driver has played them."""
    try:
        while True:
            count = await asyncio.to_thread(connection.recv)
            async with open_conversations(count) as (addresses, read_records):
                connection.send([tuple(address) for address in addresses])
                await asyncio.to_thread(connection.recv)
                recorded = [tuple(record) for record in read_records()]
            connection.send(recorded)
    except (EOFError, BrokenPipeError):
        return  # the driver has closed the connection
