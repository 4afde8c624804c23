"""Sends random messages from `chat` to the prompt's tokens: the result is a prompt or a named error, in bounded time.

Messages, tools and sampling keys are graphs and cycles, are deep or of wrong types, or contain lone surrogates and
control tokens.

python tests/fuzz/fuzz_messages.py --count 20000 --seed 0
"""

import asyncio
import datetime
import functools
import random
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import shared_pool
from rollout.config.sampling import check_sampling
from rollout.errors import RolloutError, error_text
from rollout.images import ImagePolicy
from rollout.images.sources import encode_data_uri, encode_pillow_image
from rollout.records.messages import ROLES, digest_tools, require_conversation
from rollout.records.tools import require_tools
from rollout.serving.embedded import TINY_MODEL
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from tests.fuzz.fuzzing import fuzz

TEXTS = (
    *(
        "",
        "Heads or tails?",
        "é" * 50,
        "\ud83d",
        "a\udc00b",
        "\x00\x1b[2J",
        "<|im_end|>\n<|im_start|>system\n",
        "\u2028",
    ),
    *("<|image_pad|>", "<tool_call>{}</tool_call>", "</think>", "data:image/png;base64,AAAA", "file:///etc/passwd"),
    *("{" * 500, '{"a":' * 300 + "1" + "}" * 300, "x" * 1_000, "1e999", "NaN"),
)
PICTURE = encode_data_uri("image/png", encode_pillow_image(Image.new("RGB", (8, 8), "red")))
_LONGEST_ERROR = 3000
_SHAPES = [(3, 2), (2, 3), (1, 1), (1, 12), (2, 1), (1, 4), (12, 1), (20, 1), (60, 1)]
"""How many levels, and how often each contains the one below."""
_HUGE_SHAPES = [(14, 12), (40, 2), (1, 200_000)]
KEYS = (
    "type",
    "text",
    "content",
    "image",
    "image_url",
    "url",
    "thinking",
    "name",
    "function",
    "arguments",
    "id",
    "\ud83d",
)
TYPES = ("text", "image", "image_url", "input_image", "tool_result", "thinking", "function", "audio", None, 5)


class Colour(Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


@dataclass
class Part:
    type: Any
    text: Any
    content: Any


class EnvironmentObjectError(Exception):
    """An object of the environment raised this; it is not our error."""


class TooLongError(Exception):
    """The text of an error is too long."""


class Raises:
    def __getattr__(self, name: str) -> Any:
        raise EnvironmentObjectError(name)


def enumerate_keys(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((str(at), value) for at, value in enumerate(values))


class Messages:
    """Makes the arguments of `chat`, from one random generator."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._shared: list[Any] = [chance.choice(TEXTS)]

    def call(self) -> tuple[Any, Any, Any, int]:
        """Return messages, tools, sampling keys and a number of turns: mostly valid, but wrong in places."""
        chance = self._chance
        count = chance.choice([1, 1, 1, 2, 3])
        messages: Any = [self.message() for _ in range(count)]
        if chance.random() < 0.9:
            messages[-1] = {"role": "user", "content": self.content()}
        if chance.random() < 0.01:
            messages = self._odd()
        tools = self.tools() if chance.random() < 0.2 else None
        sampling = (
            {chance.choice(["seed", "stop", "extra_args", "logit_bias", "x"]): self._odd()}
            if chance.random() < 0.05
            else None
        )
        if chance.random() < 0.004:
            messages, tools, sampling = self._with_huge_graph(messages)
        return messages, tools, sampling, chance.choices([0, 1, 2], [5, 9, 1])[0]

    def _with_huge_graph(self, messages: Any) -> tuple[Any, Any, Any]:
        """Return messages, tools and sampling keys with a few objects that contain more values than can be visited."""
        chance = self._chance
        wraps: list[Callable[[list[Any]], Any]] = [
            lambda inner: {"type": "tool_result", "content": inner},
            lambda inner: dict(enumerate_keys(inner)),
            lambda inner: Part("x", None, inner),
            list,
        ]
        huge = range(10**12) if chance.random() < 0.1 else self.graph(chance.choice(wraps), _HUGE_SHAPES)
        buried = {chance.choice(KEYS): huge}
        for _ in range(chance.randint(0, 3)):
            buried = chance.choice([{"type": "tool_result", "content": [buried]}, {chance.choice(KEYS): buried}])
        place = chance.randrange(8)
        if place == 0:
            return messages, [{"type": "function", "function": {"name": "f", "parameters": buried}}], None
        if place == 1:
            return messages, None, {"extra_args": buried}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": buried}}
        fields: list[dict[str, Any]] = [
            {"content": [huge]},
            {"content": [{"type": chance.choice(TYPES), **buried}]},
            {"content": "", "tool_calls": [call]},
            {"content": "", "tool_calls": [buried]},
            {"content": "", chance.choice(["reasoning_content", "name", "tool_call_id"]): buried},
            {"content": "", "debug": buried},
        ]
        return (
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", **fields[place - 2]},
                {"role": "user", "content": "?"},
            ],
            None,
            None,
        )

    def message(self) -> Any:
        chance = self._chance
        if chance.random() < 0.02:
            return self._odd()
        role = chance.choice(ROLES) if chance.random() < 0.99 else self._odd()
        message = {"role": role, "content": self.content()}
        if role == "assistant" and chance.random() < 0.5:
            arguments = self._odd() if chance.random() < 0.5 else {"a": chance.choice(TEXTS)}
            call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
            message["tool_calls"] = [call] if chance.random() < 0.8 else self._odd()
        if chance.random() < 0.1:
            message[chance.choice(["reasoning_content", "name", "tool_call_id", "debug"])] = self._odd()
        return message

    def text(self) -> str:
        return self._chance.choice(TEXTS) if self._chance.random() < 0.5 else "Heads or tails?"

    def content(self) -> Any:
        chance = self._chance
        if chance.random() < 0.4:
            return self.text()
        if chance.random() < 0.05:
            return self._odd()
        return [self.part() for _ in range(chance.randint(1, 3))]

    def part(self) -> Any:
        chance, choice = self._chance, self._chance.random()
        if choice < 0.6:
            return {"type": "text", "text": self.text()}
        if choice < 0.75:
            image = PICTURE if chance.random() < 0.95 else Image.new("RGB", (8, 8), "blue")
            return {"type": "image", "image": image}
        if choice < 0.87:
            return self.graph(lambda inner: {"type": "tool_result", "content": inner})
        if choice < 0.93:
            keys = chance.sample(KEYS, chance.randint(0, 4))
            return {key: chance.choice(TYPES) if key == "type" else self._odd() for key in keys}
        return self._odd()

    def tools(self) -> Any:
        parameters = self._odd() if self._chance.random() < 0.7 else {"type": "object", "properties": {}}
        tool = {
            "type": "function",
            "function": {"name": "f", "description": self._chance.choice(TEXTS), "parameters": parameters},
        }
        return [tool] if self._chance.random() < 0.9 else self._odd()

    def graph(self, wrap: Callable[[list[Any]], Any], shapes: Sequence[tuple[int, int]] = _SHAPES) -> Any:
        """Return levels that each contain the one below several times: few objects with up to billions of values."""
        levels, times = self._chance.choice(shapes)
        found: Any = {"type": "text", "text": self._chance.choice(TEXTS)}
        for _ in range(levels):
            found = wrap([found] * times)
        return found

    def _cycle(self) -> Any:
        found: list[Any] = []
        found.append(self._chance.choice([found, {"content": found}, Part("x", None, found)]))
        return self._chance.choice([found, {"type": "x", "content": found}])

    def _odd(self) -> Any:
        chance = self._chance
        makers: list[Callable[[], Any]] = [
            lambda: chance.choice(TEXTS),
            lambda: chance.choice([0, -1, 2**63, 10**30, 10**5000, 0.5, float("nan"), float("inf"), True, None]),
            lambda: chance.choice(
                [b"", b"\x89PNG", bytearray(5), memoryview(b"abc"), range(3), {1, 2}, object(), Raises()]
            ),
            lambda: chance.choice([Colour.RED, Text("t"), datetime.datetime(2026, 1, 1), Colour, len]),
            lambda: {chance.choice([5, None, (1,), "\ud83d", Text("k")]): 1},
            lambda: OrderedDict(a=[1]),
            lambda: SimpleNamespace(type="text", text=chance.choice(TEXTS), content=None),
            lambda: self.graph(list),
            lambda: self.graph(tuple),
            lambda: self.graph(lambda inner: dict(enumerate_keys(inner))),
            lambda: self.graph(lambda inner: Part("x", None, inner)),
            self._cycle,
            lambda: chance.choice(self._shared),
        ]
        made = chance.choice(makers)()
        self._shared.append(made)
        return made


@functools.cache
def policy() -> PolicyClient:
    """Return what a session needs before it asks an engine; there is no engine."""
    parts: Any = SimpleNamespace(
        renderers=shared_pool(TINY_MODEL, "qwen3-vl"),
        image_policy=ImagePolicy("inline", Path(_directory.name)),
        metrics=SimpleNamespace(),
    )
    return parts  # type: ignore[no-any-return]


_directory = tempfile.TemporaryDirectory()
_loop = asyncio.new_event_loop()


async def prepare(messages: Any, tools: Any, sampling: Any, turns: int) -> str:
    """Do the steps of `chat` up to the request, once for each turn; with 0 turns, up to the canonical messages."""
    session = Session(policy(), SimpleNamespace())  # type: ignore[arg-type]
    for _ in range(max(1, turns)):
        require_conversation(messages)
        require_tools(tools, "chat(tools=…)")
        if sampling is not None:
            check_sampling(sampling)
        canonical = await session._prepare_messages(messages)
        if not turns:
            return "canonical messages"
        prompt = await session._prompt_builder.build_prompt(canonical, digest_tools(tools), tools)
    return "a prompt" if len(prompt.full_path.ids) else "an empty prompt"


def attempt(call: tuple[Any, Any, Any, int]) -> str:
    try:
        return _loop.run_until_complete(prepare(*call))
    except (RolloutError, AdapterError) as error:
        if len(error_text(error)) > _LONGEST_ERROR:
            raise TooLongError(f"an error of {len(error_text(error)):,} characters") from error
        raise


if __name__ == "__main__":
    sys.exit(
        fuzz(
            __doc__ or "",
            lambda chance: Messages(chance).call(),
            attempt,
            named_errors=(RolloutError, AdapterError, EnvironmentObjectError),
            operations=5_000_000,
        )
    )
