"""Requests that any client could send, to real servers with the plugin."""

import base64
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.refs import RawMMRef, format_ref

collect_ignore_glob = [] if os.environ.get("ROLLOUT_VLLM_VENV") else ["test_*.py"]

RUN = "run-1"
_numbers = itertools.count()


@dataclass(frozen=True)
class Picture:
    """An image in every form in which a request can give it."""

    data: bytes
    path: Path
    payload: Mapping[str, Any]
    tokens: int
    family: str
    fingerprint: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:32]

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode()

    def part(self, *, inline: bool = False) -> dict[str, Any]:
        return {"type": "image_url", "url": self.uri if inline else self.path.as_uri(), "uuid": self.hash}

    def ref(self, *, inline: bool = False, **changed: Any) -> str:
        source = {"raw_uri": self.uri} if inline else {"raw_image_id": self.path.name}
        fields = {
            "run_id": RUN,
            "family": self.family,
            "fingerprint": self.fingerprint,
            "modality": "image",
            "mm_hash": self.hash,
            "payload": self.payload,
        }
        return format_ref(RawMMRef(**{**fields, **source, **changed}))


@dataclass(frozen=True)
class GeneratedAnswer:
    """The parts of an answer that must not depend on the form of the images."""

    tokens: list[int]
    logprobs: list[float]
    prompt: list[int]
    placeholders: Any


@dataclass(frozen=True)
class Wire:
    """Writes requests for one server, and sends them."""

    http: httpx.Client
    adapter: RendererAdapter
    media: Path

    def picture(self, width: int, height: int, seed: int | None = None) -> Picture:
        """Make a picture of random colours; without a seed, a picture that no server has seen."""
        generator = np.random.default_rng(seed if seed is not None else [next(_numbers), os.getpid()])
        blocks = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
        path = self.media / RUN / "assets" / "images" / f"{hashlib.sha256(file.getvalue()).hexdigest()}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        geometry = self.adapter.geometry
        assert geometry is not None
        layout = geometry.layout(width=width, height=height)
        payload = geometry.payload(layout)
        return Picture(file.getvalue(), path, payload, layout.tokens, geometry.family, geometry.fingerprint)

    def logical(self, count: int) -> list[int]:
        """Return the tokens of a prompt with `count` images, with one pad token for each."""
        messages = [{"role": "system", "content": "Be brief."}]
        for turn in range(count):
            content = [{"type": "image"}, {"type": "text", "text": f"Picture {turn}?"}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {turn}."}]  # type: ignore[dict-item]
        rendered = self.adapter.render(
            messages[:-1] if count else [*messages, {"role": "user", "content": "Well?"}], None
        )
        return [
            int(token)
            for ids in (*(part.ids for part in rendered.segments), rendered.generation_prompt)
            for token in ids
        ]

    def expanded(self, pictures: Sequence[Picture]) -> tuple[list[int], list[dict[str, int]]]:
        """Return the expanded tokens of the same prompt, and the placeholders of the images."""
        tokens: list[int] = []
        places: list[dict[str, int]] = []
        following = iter(pictures)
        for token in self.logical(len(pictures)):
            length = 1
            if token == self.adapter.pad_id:
                length = next(following).tokens
                places.append({"offset": len(tokens), "length": length})
            tokens += [token] * length
        return tokens, places

    def body(self, token_ids: list[int], **more: Any) -> dict[str, Any]:
        # Without a salt, the second request would only look up what the first one computed.
        sampling = {"temperature": 0, "logprobs": 0, "max_tokens": 8, "ignore_eos": True}
        asked = {"model": "tiny", "token_ids": token_ids, "sampling_params": sampling, "return_token_ids": True}
        return {**asked, "cache_salt": f"salt-{next(_numbers)}", **more}

    def content_parts(self, pictures: Sequence[Picture], *, inline: bool = False, **more: Any) -> dict[str, Any]:
        parts = [picture.part(inline=inline) for picture in pictures]
        return self.body(self.logical(len(pictures)), content_parts=parts, **more)

    def features(
        self,
        pictures: Sequence[Picture],
        data: Sequence[str | None] | None = None,
        *,
        inline: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        token_ids, places = self.expanded(pictures)
        features = {
            "mm_hashes": {"image": [picture.hash for picture in pictures]},
            "mm_placeholders": {"image": places},
            "kwargs_data": {"image": list(data or [picture.ref(inline=inline) for picture in pictures])},
        }
        return self.body(token_ids, features=features, **more)

    def tensors(self, pictures: Sequence[Picture]) -> list[str]:
        """Return the serialised items that the server itself makes of the pictures."""
        content = [{"type": "image_url", "image_url": {"url": picture.uri}} for picture in pictures]
        asked = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        rendered = self.http.post("/v1/chat/completions/render", json=asked).raise_for_status().json()
        found: list[str] = rendered["features"]["kwargs_data"]["image"]
        return found

    def post(self, body: Any) -> httpx.Response:
        return self.http.post("/inference/v1/generate", json=body)

    def answer_of(self, body: dict[str, Any]) -> GeneratedAnswer:
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        whole = answer.json()
        (choice,) = whole["choices"]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        return GeneratedAnswer(choice["token_ids"], logprobs, whole["prompt_token_ids"], whole["mm_placeholders"])

    def counter(self, name: str) -> float:
        """Return the value of one of the plugin's counters."""
        lines = self.http.get("/metrics").raise_for_status().text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def wire(fleet: Mapping[str, Any], media: Path) -> Iterator[Callable[[str], Wire]]:
    """`wire(server)`: a client that sends any request to one of the servers."""
    with_open: list[httpx.Client] = []

    def make(name: str) -> Wire:
        live = fleet[name]
        http = live.http()
        with_open.append(http)
        return Wire(http, RendererAdapter.open(live.model_dir, live.renderer), media)

    yield make
    for http in with_open:
        http.close()
