"""`model.path`: the models that the package ships, and what is said where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rollout.config.load import load_config
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.config.source import ConfigFileError
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckStatus
from rollout.rundir.directory import RunDirectory
from tests.unit.cli.in_process import run_cli


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
    """What `rollout doctor` says of the model, if nothing else is wrong."""
    results, exit_code = run_checks(load_config(yaml_file, [f"model.path={path}"]), live=False)
    assert exit_code == 2
    (bad,) = [result for result in results if result.status is CheckStatus.BAD]
    assert bad.subject == "model"
    return bad.message


def test_a_built_in_model_is_the_directory_that_the_package_ships(yaml_file: Path) -> None:
    config = load_config(yaml_file)
    assert config.model.path == BUILTIN_MODELS["builtin:tiny"]
    assert (config.model.path / "tokenizer.json").is_file()


def test_a_run_writes_the_name_of_a_built_in_model_down(yaml_file: Path, tmp_path: Path) -> None:
    RunDirectory(tmp_path).save_config(load_config(yaml_file), "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["path"] == "builtin:tiny"
    assert load_config(tmp_path / "config.yaml").model.path == BUILTIN_MODELS["builtin:tiny"]


def test_the_digest_does_not_depend_on_where_the_model_is(yaml_file: Path) -> None:
    here = load_config(yaml_file, [f"model.path={BUILTIN_MODELS['builtin:tiny']}"])
    assert load_config(yaml_file).digest() == here.digest() == load_config(yaml_file, ["model.path=/m"]).digest()


def test_an_unknown_built_in_model_is_refused_with_those_there_are(yaml_file: Path) -> None:
    with pytest.raises(ConfigFileError) as refusal:
        load_config(yaml_file, ["model.path=builtin:large"])
    message = "model.path: unknown model; the package ships builtin:tiny, found 'builtin:large'."
    assert str(refusal.value) == f"--set model.path: {message}"


def test_the_name_of_a_model_of_the_hub_gets_the_command_that_downloads_it(yaml_file: Path) -> None:
    message = missing_model(yaml_file, "Qwen/Qwen3-VL-4B-Instruct")
    directory = yaml_file.parent
    assert f"{yaml_file}: model.path: {directory}/Qwen/Qwen3-VL-4B-Instruct does not exist." in message
    command = f"hf download Qwen/Qwen3-VL-4B-Instruct --local-dir {directory}/models/Qwen3-VL-4B-Instruct"
    assert f"`{command}`, and write `path: models/Qwen3-VL-4B-Instruct`" in message


@pytest.mark.parametrize("path", ["../models/tiny", "tiny", "./a/b/c", "/models/tiny"])
def test_another_missing_path_is_told_with_where_was_looked(yaml_file: Path, path: str) -> None:
    message = missing_model(yaml_file, path)
    assert f"{(yaml_file.parent / path).resolve()} does not exist. A relative path is relative to the YAML" in message
    assert "hf download" not in message


def test_a_directory_beside_the_file_is_no_owner_of_models(yaml_file: Path) -> None:
    (yaml_file.parent / "models").mkdir()
    assert "hf download" not in missing_model(yaml_file, "models/tiny")


@pytest.mark.parametrize("command", ["run", "launch"])
@pytest.mark.parametrize("urls", ["[]", "['http://127.0.0.1:9']"])
def test_a_run_without_a_model_ends_with_what_to_do(yaml_file: Path, command: str, urls: str) -> None:
    settings = ("model.path=Qwen/Qwen3-VL-4B-Instruct", f"engine.urls={urls}")
    result = run_cli(command, str(yaml_file), *(part for setting in settings for part in ("--set", setting)))
    assert result.returncode == 2, result.stderr
    assert "hf download Qwen/Qwen3-VL-4B-Instruct" in result.stderr


def test_a_worker_without_a_model_ends_with_what_to_do(yaml_file: Path) -> None:
    command = [sys.executable, "-m", "rollout", "worker", str(yaml_file), "--set", "model.path=Qwen/Qwen3-VL-4B"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2, result.stderr
    assert "hf download Qwen/Qwen3-VL-4B" in result.stderr
