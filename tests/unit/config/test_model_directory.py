"""`model.path`: the built-in models, and the errors for a missing model."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rollout.config.load import load_config
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.config.source import ConfigFileError
from rollout.rundir.directory import RunDirectory
from tests.unit.cli.in_process import run_cli, set_options
from tests.unit.doctor.problems import only_problem


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "env.yaml"
    path.parent.mkdir()
    path.write_text(
        "environment: {class: 'rollout.environments.color_codeword:ColorCodeword'}\n"
        "model: {name: m, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    return path


def missing_model(yaml_file: Path, path: str) -> str:
    """Return the message of `rollout doctor` about the model, which is its only problem."""
    bad = only_problem(load_config(yaml_file, [f"model.path={path}"]))
    assert bad.subject == "model"
    return bad.message


def test_a_built_in_model_is_the_directory_that_the_package_ships(yaml_file: Path) -> None:
    config = load_config(yaml_file)
    assert config.model.path == BUILTIN_MODELS["builtin:tiny"]
    assert (config.model.path / "tokenizer.json").is_file()


def test_the_configuration_of_a_run_keeps_the_name_of_a_built_in_model(yaml_file: Path, tmp_path: Path) -> None:
    RunDirectory(tmp_path).save_config(load_config(yaml_file), "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["path"] == "builtin:tiny"
    assert load_config(tmp_path / "config.yaml").model.path == BUILTIN_MODELS["builtin:tiny"]


def test_the_digest_does_not_depend_on_where_the_model_is(yaml_file: Path) -> None:
    here = load_config(yaml_file, [f"model.path={BUILTIN_MODELS['builtin:tiny']}"])
    assert load_config(yaml_file).digest() == here.digest() == load_config(yaml_file, ["model.path=/m"]).digest()


def test_the_error_for_an_unknown_built_in_model_lists_the_built_in_ones(yaml_file: Path) -> None:
    with pytest.raises(ConfigFileError) as refusal:
        load_config(yaml_file, ["model.path=builtin:large"])
    message = "model.path: unknown model; the package ships builtin:tiny, found 'builtin:large'."
    assert str(refusal.value) == f"--set model.path: {message}"


def test_the_error_for_a_name_of_the_hub_has_the_command_to_download_it(yaml_file: Path) -> None:
    message = missing_model(yaml_file, "Qwen/Qwen3-VL-4B-Instruct")
    directory = yaml_file.parent
    assert f"{yaml_file}: model.path: {directory}/Qwen/Qwen3-VL-4B-Instruct does not exist." in message
    command = f"hf download Qwen/Qwen3-VL-4B-Instruct --local-dir {directory}/models/Qwen3-VL-4B-Instruct"
    assert f"`{command}`, and write `path: models/Qwen3-VL-4B-Instruct`" in message


@pytest.mark.parametrize("path", ["../models/tiny", "tiny", "./a/b/c", "/models/tiny"])
def test_the_error_for_a_missing_path_names_the_absolute_path(yaml_file: Path, path: str) -> None:
    message = missing_model(yaml_file, path)
    assert f"{(yaml_file.parent / path).resolve()} does not exist. A relative path is relative to the YAML" in message
    assert "hf download" not in message


def test_a_path_into_an_existing_directory_is_not_a_name_of_the_hub(yaml_file: Path) -> None:
    (yaml_file.parent / "models").mkdir()
    assert "hf download" not in missing_model(yaml_file, "models/tiny")


@pytest.mark.parametrize("command", ["run", "launch"])
@pytest.mark.parametrize("urls", ["[]", "['http://127.0.0.1:9']"])
def test_run_and_launch_without_a_model_exit_with_2(yaml_file: Path, command: str, urls: str) -> None:
    options = set_options("model.path=Qwen/Qwen3-VL-4B-Instruct", f"engine.urls={urls}")
    result = run_cli(command, str(yaml_file), *options)
    assert result.returncode == 2, result.stderr
    assert "hf download Qwen/Qwen3-VL-4B-Instruct" in result.stderr


def test_a_worker_without_a_model_exits_with_2(yaml_file: Path) -> None:
    command = [sys.executable, "-m", "rollout", "worker", str(yaml_file), "--set", "model.path=Qwen/Qwen3-VL-4B"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2, result.stderr
    assert "hf download Qwen/Qwen3-VL-4B" in result.stderr
