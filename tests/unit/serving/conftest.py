"""A real embedded engine on loopback, and requests for it built from real images."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.serving.embedded import TINY_MODEL, EmbeddedServer, EmbeddedSettings

Body = dict[str, Any]


@pytest.fixture(scope="session")
def tokenizer() -> FastTokenizer:
    return load_tokenizer(TINY_MODEL)


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the shared engine may read files from."""
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def engine(media_dir: Path) -> Iterator[httpx.Client]:
    """An engine that all tests without settings of their own share."""
    settings = EmbeddedSettings(allowed_directories=(media_dir,), weight_version="7", max_model_len=2048)
    with EmbeddedServer(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Draws a square of a colour; returns the encoded bytes."""

    def draw(color: str, **settings: Any) -> bytes:
        uri = draw_square(color, ColorCodewordSettings(**settings), seed="a test")
        return base64.b64decode(uri.partition(",")[2])

    return draw


@pytest.fixture(scope="session")
def part() -> Callable[[bytes], Body]:
    """Makes a content part with an image inline."""

    def inline(data: bytes) -> Body:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "url": url, "uuid": hashlib.sha256(data).hexdigest()[:32]}

    return inline


@pytest.fixture(scope="session")
def body(tokenizer: FastTokenizer, part: Callable[[bytes], Body]) -> Callable[..., Body]:
    """Makes a valid request: a user turn for each image, then a question if there is one. `sampling` is merged in."""

    def build(images: Sequence[bytes] = (), *, question: str = "", **sampling: Any) -> Body:
        turns = [
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is the colour?<|im_end|>\n"
            for _ in images
        ]
        if question or not images:
            turns.append(f"<|im_start|>user\n{question}<|im_end|>\n")
        text = "<|im_start|>assistant\nI see.<|im_end|>\n".join(turns) + "<|im_start|>assistant\n"
        return {
            "model": "tiny-qwen3-vl",
            "token_ids": tokenizer.encode(text),
            "content_parts": [part(data) for data in images],
            "sampling_params": {
                "temperature": 0,
                "logprobs": 0,
                "stop_token_ids": [tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")],
                **sampling,
            },
            "return_token_ids": True,
        }

    return build


@pytest.fixture(scope="session")
def answer_text(tokenizer: FastTokenizer) -> Callable[[Body], str]:
    """Returns the text of an answer, without its end token."""

    def text(answer: Body) -> str:
        [choice] = answer["choices"]
        return tokenizer.decode(choice["token_ids"], skip_special_tokens=True)

    return text
