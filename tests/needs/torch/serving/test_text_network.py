"""The network engine with a model of text."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.tokenizer import load_tokenizer
from tests.chat_families.families import FAMILIES, write_checkpoint
from tests.chat_families.networks import write_network

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_checkpoint(FAMILIES["Llama 3.x"], tmp_path_factory.mktemp("text") / "llama")
    write_network(FAMILIES["Llama 3.x"], directory)
    return directory


def request_body(llama: Path, **sampling: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "token_ids": load_tokenizer(llama).encode("What is the largest lake?"),
        "sampling_params": {"temperature": 1.0, "logprobs": 0, "seed": 1, **sampling},
        "return_token_ids": True,
    }


def test_logprobs_of_a_text_model_are_those_of_a_plain_forward(world: Callable[..., Any], llama: Path) -> None:
    question = request_body(llama, max_tokens=8)
    bodies = [{**question, "token_ids": question["token_ids"][start:]} for start in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(world(llama).generate, bodies))
    network = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    for body, answer in zip(bodies, answers, strict=True):
        [choice] = answer["choices"]
        with torch.no_grad():
            logits = network(torch.tensor([body["token_ids"] + choice["token_ids"]])).logits[0].log_softmax(-1)
        first = len(body["token_ids"]) - 1
        expected = [logits[first + index, token].item() for index, token in enumerate(choice["token_ids"])]
        assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|end_of_text|>"])
def test_each_end_token_of_a_text_model_ends_its_answer(world: Callable[..., Any], llama: Path, token: str) -> None:
    end = load_tokenizer(llama).token_id(token)
    [choice] = world(llama).generate(request_body(llama, allowed_token_ids=[end], max_tokens=8))["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == ([end], "stop")
