"""Tiny checkpoints, engines that serve them, and a plain forward of transformers to compare with."""

import base64
import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.serving.network.engine import NetworkEngine
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.server import EngineServer
from rollout.serving.tiny_model.checkpoint import make_checkpoint

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

Body = dict[str, Any]
FAMILIES = ("qwen3-vl", "qwen2.5-vl")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread; for such small matrices, several are slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a tiny checkpoint, made once for each family and seed."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(family: str = "qwen3-vl", seed: int = 0) -> Path:
        directory = root / f"{family}-{seed}"
        if not directory.exists():
            make_checkpoint(directory, family, seed=seed)
        return directory

    return made


@dataclass(frozen=True)
class RunningEngine:
    """An engine on loopback, with a client."""

    directory: Path
    engine: NetworkEngine
    client: httpx.Client
    tokenizer: FastTokenizer

    def generate(self, body: Body) -> Body:
        response = self.client.post("/inference/v1/generate", json=body)
        assert response.status_code == 200, response.text
        answer: Body = response.json()
        return answer

    def push(self, version: str, mode: str = "wait", **kwargs: str) -> None:
        for path, body in (
            (f"/pause?mode={mode}", {}),
            ("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs}),
            ("/update_weight_version", {"new_version": version}),
            ("/resume", {}),
        ):
            response = self.client.post(path, json=body)
            assert response.status_code == 200, response.text


@pytest.fixture
def world(checkpoint: Callable[..., Path]) -> Iterator[Callable[..., RunningEngine]]:
    """Starts an engine for a checkpoint, and stops it after the test."""
    with ExitStack() as stack:

        def start(directory: Path | None = None) -> RunningEngine:
            directory = directory or checkpoint()
            engine = NetworkEngine(NetworkSettings(directory, model_name="tiny"))
            url = stack.enter_context(EngineServer(engine, weight_version="1"))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
            return RunningEngine(directory, engine, client, load_tokenizer(directory))

        yield start


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Four squares of different colours."""
    settings = ColorCodewordSettings(image_size=64)
    drawn = [draw_square(color, settings, seed=color) for color in ("red", "blue", "green", "cyan")]
    return [base64.b64decode(uri.partition(",")[2]) for uri in drawn]


@pytest.fixture(scope="session")
def body(checkpoint: Callable[..., Path]) -> Callable[..., Body]:
    """Makes a request that shows one image in each turn and then asks a question; `sampling` is merged in."""
    tokenizer = load_tokenizer(checkpoint())

    def build(images: Sequence[bytes] = (), question: str = "Which?", **sampling: Any) -> Body:
        shown = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
            "<|im_start|>assistant\nred<|im_end|>\n"
        )
        text = shown * len(images) + f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        words = [tokenizer.token_id(chr(letter)) for letter in range(ord("a"), ord("z") + 1)]
        return {
            "token_ids": tokenizer.encode(text),
            "content_parts": [
                {
                    "type": "image_url",
                    "url": f"data:image/png;base64,{base64.b64encode(data).decode()}",
                    "uuid": hashlib.sha256(data).hexdigest()[:32],
                }
                for data in images
            ],
            # Random weights would sample image pads, which a plain forward refuses without an image.
            "sampling_params": {
                "temperature": 1.0,
                "logprobs": 0,
                "max_tokens": 8,
                "allowed_token_ids": words,
                **sampling,
            },
            "return_token_ids": True,
        }

    return build


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., Any]:
    """Computes the logits for each sampled token, with one plain forward and the checkpoint's own processor."""

    def forward(directory: Path, images: Sequence[bytes], answer: Body) -> Any:
        model = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        [choice] = answer["choices"]
        ids = torch.tensor([[*answer["prompt_token_ids"], *choice["token_ids"]]])
        inputs = _pixels(directory, images) if images else {}
        types = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=types, **inputs).logits[0]
        return logits[len(answer["prompt_token_ids"]) - 1 : -1]

    return forward


def _pixels(directory: Path, images: Sequence[bytes]) -> dict[str, Any]:
    import io

    from PIL import Image

    module = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = module.Qwen2VLImageProcessorPil.from_pretrained(directory)
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
    return dict(processor(images=opened, return_tensors="pt"))
