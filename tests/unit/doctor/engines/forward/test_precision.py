"""How an engine and a checkpoint say in which precision they compute."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.doctor.engines.forward.precision import EnginePrecision, checkpoint_dtype, read_precision


def answer(**model_config: Any) -> bytes:
    return json.dumps({"vllm_config": {"model_config": model_config}}).encode()


def test_the_precision_of_vllm_is_read() -> None:
    said = answer(dtype="torch.bfloat16", quantization="fp8", logprobs_mode="raw_logprobs")
    assert read_precision(said) == EnginePrecision("bfloat16", "fp8", "raw_logprobs")


@pytest.mark.parametrize("said", [b"<html>", b"[]", b'{"vllm_config": "model=..."}', answer(dtype="torch.float32")])
def test_an_unknown_form_says_nothing(said: bytes) -> None:
    assert read_precision(said) == EnginePrecision()


def test_an_unknown_type_is_not_said() -> None:
    assert read_precision(answer(dtype="torch.float64", quantization=None, logprobs_mode="raw_logprobs")).dtype is None


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float64"}, "float32"),
        ({}, "float32"),
        ([], "float32"),
    ],
)
def test_the_type_of_a_checkpoint_is_read(tmp_path: Path, config: Any, dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(tmp_path) == dtype


def test_a_checkpoint_without_config_is_float32(tmp_path: Path) -> None:
    assert checkpoint_dtype(tmp_path) == "float32"
