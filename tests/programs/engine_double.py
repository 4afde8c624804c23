"""An engine in this process that gives scripted answers, with the same evidence as a real engine.

It expands the prompt itself, from the references of the request. It keeps what it saw, and the tests compare the
records with that.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import orjson

from rollout.engine.client import EngineClient
from rollout.engine.stand_in import StandInEngine


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """What the policy samples next, and after how many steps of the event loop."""

    tokens: tuple[int, ...]
    finish: str = "stop"
    stop_reason: str | None = None
    delay_steps: int = 0


@dataclass(frozen=True, slots=True)
class ObservedTurn:
    """One turn as the engine saw it: logical and expanded prompt, images in order, and what it sampled."""

    logical: tuple[int, ...]
    expanded: tuple[int, ...]
    images: tuple[str, ...]
    answer: ScriptedAnswer

    @property
    def prompt_and_completion(self) -> tuple[int, ...]:
        """Prompt and completion, with one pad token for each image."""
        return self.logical + self.answer.tokens


class EngineDouble:
    """Gives scripted answers to its client.

    `images` maps each URL to the hash of its bytes and its number of tokens.
    """

    def __init__(self, pad_id: int | None, images: Mapping[str, tuple[str, int]]) -> None:
        self.client = EngineClient(
            ["http://double"], "double", timeout=3600, retries=0, transport=StandInEngine(self._answer)
        )
        self.images = MappingProxyType(images)
        self.scripted_answers: list[ScriptedAnswer] = []
        self.started_turns: list[int] = []
        self.turns: dict[int, ObservedTurn] = {}
        self.refuses_bans = False
        self._pad_id = pad_id

    async def _answer(self, url: str, body: bytes) -> tuple[int, bytes]:
        if url.endswith("/abort_requests"):
            return 200, b""
        request = orjson.loads(body)
        if self.refuses_bans and "logit_bias" in request["sampling_params"]:
            return 400, b'{"error": {"message": "logit_bias is not supported"}}'
        scripted = self.scripted_answers.pop(0)
        number = int(request["request_id"].rpartition("-")[2].removesuffix(".0"))
        assert number not in self.started_turns, "two turns have the same number"
        self.started_turns.append(number)
        for _ in range(scripted.delay_steps):
            await asyncio.sleep(0)
        prompt, parts = request["token_ids"], request.get("content_parts", [])
        hashes, expanded, ranges = self._expand(prompt, [part["url"] for part in parts])
        assert hashes == [part["uuid"] for part in parts], "a reference has the hash of another image"
        answer = {
            "choices": [
                {
                    "token_ids": scripted.tokens,
                    "logprobs": {"content": [{"token_id": t, "logprob": -0.001 * (t % 997)} for t in scripted.tokens]},
                    "finish_reason": scripted.finish,
                    "stop_reason": scripted.stop_reason,
                    "weight_versions": [{"version": str(number), "start": 0, "end": len(scripted.tokens)}],
                }
            ],
            "prompt_token_ids": expanded,
            "mm_placeholders": {"image": [{"offset": offset, "length": length} for offset, length in ranges]},
        }
        if scripted.finish != "abort":
            self.turns[number] = ObservedTurn(tuple(prompt), tuple(expanded), tuple(hashes), scripted)
        return 200, orjson.dumps(answer)

    def _expand(self, prompt: Sequence[int], urls: Sequence[str]) -> tuple[list[str], list[int], list[tuple[int, int]]]:
        left, hashes, expanded, ranges = list(urls), list[str](), list[int](), list[tuple[int, int]]()
        for token in prompt:
            if token != self._pad_id:
                expanded.append(token)
                continue
            assert left, "the prompt has more image pads than references"
            mm_hash, length = self.images[left.pop(0)]
            hashes.append(mm_hash)
            ranges.append((len(expanded), length))
            expanded += [token] * length
        assert not left, "the request has more references than image pads"
        return hashes, expanded, ranges
