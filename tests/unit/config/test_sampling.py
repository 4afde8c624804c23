"""The sampling keys have the same limits and the same errors in the YAML and in a turn."""

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rollout.config.load import Config, load_config
from rollout.config.sampling import SAMPLING_KEYS, SamplingError, check_sampling
from rollout.config.source import ConfigFileError
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.directory import RunDirectory
from rollout.session.policy import PolicyClient
from rollout.worker.setup import find_or_start_engines, open_policy

ALL_KEYS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "max_tokens": 8,
    "min_tokens": 2,
    "seed": 3,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "repetition_penalty": 1.1,
    "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
    "stop": ["\n\n", "END"],
    "stop_token_ids": [5, 6],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "bad_words": ["maybe"],
    "allowed_token_ids": [5, 6, 7],
    "logit_bias": {"5": -100.0},
    "structured_outputs": {"regex": "a+"},
    "thinking_token_budget": 100,
    "detokenize": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "skip_reading_prefix_cache": True,
    "extra_args": {"of": {"a": "plugin"}},
}


def load(directory: Path, sampling: object) -> Config:
    path = directory / "env.yaml"
    model = {"name": "tiny", "path": "models/tiny", "renderer": "qwen3-vl"}
    environment = {"class": "rollout.environments.color_codeword:ColorCodeword"}
    path.write_text(yaml.safe_dump({"environment": environment, "model": model, "engine": {"sampling": sampling}}))
    return load_config(path)


def test_the_yaml_and_a_turn_accept_every_key(tmp_path: Path) -> None:
    assert set(ALL_KEYS) == SAMPLING_KEYS
    assert load(tmp_path, ALL_KEYS).engine.sampling.model_dump(mode="json") == ALL_KEYS
    assert check_sampling(ALL_KEYS) == ALL_KEYS


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("temprature", 1, "temprature: unknown key; did you mean 'temperature'?"),
        ("n", 2, "n: unknown key; the valid names are temperature, top_p, "),
        ("temperature", -1, "temperature: Input should be greater than or equal to 0, found -1."),
        ("temperature", math.nan, "temperature: Input should be a finite number, found nan."),
        ("temperature", "1", "temperature: Input should be a valid number, found '1'."),
        ("temperature", None, "temperature: Input should be a valid number, found None."),
        ("top_p", math.inf, "top_p: Input should be a finite number, found inf."),
        ("top_k", -2, "top_k: Input should be greater than or equal to -1, found -2."),
        ("presence_penalty", 3, "presence_penalty: Input should be less than or equal to 2, found 3."),
        ("ignore_eos", 1, "ignore_eos: Input should be a valid boolean, found 1."),
        ("stop", 5, "stop: expected a list, found 5."),
        ("stop", [""], "stop.0: String should have at least 1 character, found ''."),
        ("stop_token_ids", "5", """stop_token_ids: expected a list, found '5'; write stop_token_ids: ["5"]."""),
        ("logit_bias", {"the": 1.0}, "logit_bias.the.[key]: Input should be a valid integer"),
    ],
)
def test_the_yaml_and_a_turn_refuse_a_value_with_the_same_error(
    tmp_path: Path, key: str, value: object, problem: str
) -> None:
    with pytest.raises(ConfigFileError) as in_yaml:
        load(tmp_path, {key: value})
    assert f": engine.sampling.{problem}" in str(in_yaml.value)
    with pytest.raises(SamplingError) as in_turn:
        check_sampling({key: value})
    assert str(in_turn.value).startswith(f"chat(sampling=…): {problem}")


def test_one_stop_text_needs_no_list(tmp_path: Path) -> None:
    assert load(tmp_path, {"stop": "END"}).engine.sampling.stop == ["END"]
    assert check_sampling({"stop": "END"}) == {"stop": ["END"]}


def test_a_turn_can_remove_a_key_and_use_tuples_and_numbers_of_numpy() -> None:
    given = {"top_p": None, "stop_token_ids": (5,), "max_tokens": np.int64(7), "logit_bias": {5: np.float32(1)}}
    assert check_sampling(given) == {"top_p": None, "stop_token_ids": [5], "max_tokens": 7, "logit_bias": {"5": 1.0}}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (0.5, "got a float; expected a mapping, such as {'temperature': 0.5}."),
        ({"extra_args": {"x": object()}}, "chat(sampling=…): a value of the type object cannot be written as JSON."),
    ],
)
def test_a_sampling_that_is_not_a_mapping_of_plain_values_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(SamplingError) as refused:
        check_sampling(given)
    assert problem in str(refused.value)


def test_keys_that_are_not_given_do_not_change_the_digest(tmp_path: Path) -> None:
    assert load(tmp_path, {}).to_dict()["engine"]["sampling"] == {
        "temperature": 1.0,
        "top_p": None,
        "top_k": None,
        "max_tokens": 512,
        "seed": None,
    }
    assert load(tmp_path, {"stop": "END"}).digest() != load(tmp_path, {}).digest()


@asynccontextmanager
async def policy_with(repository: Path, tmp_path: Path, *overrides: str) -> AsyncIterator[PolicyClient]:
    """Open the policy of a run with these settings."""
    config = load_config(repository / "configs" / "color_codeword.yaml", overrides)
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    with ExitStack() as engines:
        urls = partial(find_or_start_engines, config, directory, engines)
        async with open_policy(config, directory, urls, WorkerMetrics("run")) as policy:
            yield policy


async def test_a_bias_of_the_yaml_reaches_the_engine_with_texts_as_keys(tmp_path: Path, repository: Path) -> None:
    async with policy_with(repository, tmp_path, "engine.sampling.logit_bias={'5': 1.0}") as policy:
        assert policy.sampling["logit_bias"] == {"5": 1.0}


async def test_banned_tokens_and_the_escape_of_special_text_can_be_switched_off(
    tmp_path: Path, repository: Path
) -> None:
    settings = ("engine.ban_placeholders=false", "model.special_text=allow")
    async with policy_with(repository, tmp_path, *settings) as policy:
        rendered = await policy.renderers.render([{"role": "user", "content": "<think>"}], None)
        assert policy.renderers.tokenizer.token_id("<think>") in rendered.segments[0].ids
        assert policy.banned_ids == ()
