"""The reader of requests for models of text: which tokens end an answer, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.engine import ModelCard
from rollout.serving.protocol import GenerateBody, RequestRefused
from rollout.serving.request_reader import ParsedRequest, RequestReader
from tests.chat_families.families import FAMILIES, write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(FAMILIES["Llama 3.x"], tmp_path / "model")


def read(model: Path, **changes: Any) -> ParsedRequest:
    body = {
        "model": "text",
        "token_ids": [1, 2],
        "sampling_params": {"temperature": 0, "logprobs": 0},
        "return_token_ids": True,
        **changes,
    }
    return RequestReader(ModelCard("text", model, 64), ()).read(GenerateBody.model_validate(body))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    changed = {**json.loads(path.read_text("utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}), "utf-8")


def test_the_tokenizer_and_the_generation_config_end_an_answer(model: Path) -> None:
    token_id = load_tokenizer(model).token_id
    conditions = read(model).stop_conditions
    assert conditions.eos_token_ids == {token_id("<|eot_id|>")}
    assert conditions.stop_token_ids == {token_id("<|end_of_text|>"), token_id("<|eom_id|>")}


def test_one_end_token_of_the_generation_config_is_enough(model: Path) -> None:
    change(model / "tokenizer_config.json", eos_token=None)
    change(model / "generation_config.json", eos_token_id=5)
    assert read(model).stop_conditions.eos_token_ids == {5}


def test_without_a_generation_config_the_end_token_of_config_json_counts(model: Path) -> None:
    (model / "generation_config.json").unlink()
    (model / "config.json").write_text('{"eos_token_id": 5}', "utf-8")
    assert read(model).stop_conditions.stop_token_ids == {5}


def test_a_model_without_an_end_token_is_an_error_with_the_files(model: Path) -> None:
    change(model / "tokenizer_config.json", eos_token=None)
    change(model / "generation_config.json", eos_token_id=None)
    with pytest.raises(
        AdapterError, match=r"eos_token in tokenizer_config\.json, or eos_token_id in generation_config"
    ):
        read(model)


@pytest.mark.parametrize("eos_token_id", [-1, 10**6, "5", True, [5, 10**6]])
def test_an_end_token_that_is_no_token_is_an_error(model: Path, eos_token_id: object) -> None:
    change(model / "generation_config.json", eos_token_id=eos_token_id)
    with pytest.raises(AdapterError, match=r"eos_token_id in .*generation_config\.json has"):
        read(model)


def test_a_model_of_text_refuses_images(model: Path) -> None:
    part = {"type": "image_url", "url": "data:image/png;base64,AAAA", "uuid": "0" * 32}
    with pytest.raises(RequestRefused, match="takes no images") as caught:
        read(model, content_parts=[part])
    assert caught.value.param == "content_parts"
