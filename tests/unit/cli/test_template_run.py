"""`rollout doctor`, `run` and `launch` with the chat template of a checkpoint, without a neural network."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rollout.rundir.manifest import resume_run
from tests.chat_families.families import FAMILIES, write_checkpoint
from tests.unit.cli.in_process import run_cli, set_options
from tests.unit.doctor.template_errors import TEMPLATE_ERRORS


@pytest.fixture
def model(tiny_model: Path, repository: Path, tmp_path: Path) -> Path:
    """The small model as a text model with the chat template of Qwen3."""
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    template = repository / "rollout" / "serving" / "tiny_model" / "templates" / "qwen3.jinja"
    shutil.copy(template, directory / "chat_template.jinja")
    return directory


def write_environment(directory: Path, template: str, renderer: str, *lines: str) -> Path:
    """Write a new environment whose model has this renderer; return its YAML."""
    name = f"env-{directory.name}"
    assert run_cli("init", str(directory / name), "--template", template).returncode == 0
    path = directory / name / f"env_{directory.name.lower()}.yaml"
    changed = "\n  ".join((f"renderer: {renderer}", *lines))
    path.write_text(path.read_text("utf-8").replace("renderer: qwen3-vl", changed), "utf-8")
    return path


@pytest.mark.parametrize("template", ["chat", "tools"])
def test_a_run_is_bridged_with_the_template_of_the_checkpoint(tmp_path: Path, model: Path, template: str) -> None:
    path = write_environment(tmp_path, template, "template", "tool_parser: qwen3", "reasoning_parser: think")
    settings = [f"model.path={model}", "engine.sampling.temperature=0"]
    assert run_cli("doctor", str(path), *set_options(*settings)).returncode == 0
    played = run_cli("run", str(path), *set_options("tasks.count=2", *settings))
    assert played.returncode == 0, played.stderr
    assert "reward  1.000" in played.stdout
    assert re.search(r"prompts  100 % of [1-9]\d* later turns bridged\n", played.stdout)
    assert "all checks passed" in played.stdout


@pytest.mark.parametrize("family", ["Llama 3.x", "Phi-3", "Gemma 3"])
def test_a_run_with_a_model_of_text_is_bridged(tmp_path: Path, family: str) -> None:
    model = write_checkpoint(FAMILIES[family], tmp_path / "model")
    path = write_environment(tmp_path, "chat", "template")
    settings = set_options("tasks.count=2", f"model.path={model}")
    assert run_cli("doctor", str(path), *settings).returncode == 0
    played = run_cli("run", str(path), *settings)
    assert played.returncode == 0, played.stderr
    assert re.search(r"prompts  100 % of [1-9]\d* later turns bridged\n", played.stdout)


@pytest.mark.parametrize("command", ["doctor", "run"])
def test_a_wrong_end_token_of_the_model_is_a_bad_configuration(tmp_path: Path, command: str) -> None:
    model = write_checkpoint(FAMILIES["Llama 3.x"], tmp_path / "model")
    (model / "generation_config.json").write_text('{"eos_token_id": 1000000}', "utf-8")
    path = write_environment(tmp_path, "chat", "template")
    result = run_cli(command, str(path), *set_options("tasks.count=1", f"model.path={model}"))
    assert result.returncode == 2
    assert "generation_config.json has 1000000" in " ".join((result.stdout + result.stderr).split())


def test_a_run_without_a_parser_of_calls_calls_no_tool(tmp_path: Path, model: Path) -> None:
    path = write_environment(tmp_path, "tools", "template")
    played = run_cli("run", str(path), "--json", *set_options("tasks.count=2", f"model.path={model}"))
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout)["metrics"]["tool_calls"] == 0


def test_workers_find_the_file_of_a_template_beside_the_configuration(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_environment(tmp_path, "chat", "template", "template: {file: chat.jinja}")
    (model / "chat_template.jinja").rename(path.parent / "chat.jinja")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = tmp_path / "run"
    settings = set_options("tasks.count=2", f"model.path={model}")
    launched = run_cli("launch", str(path), "--run", str(run), "--workers", "1", "--json", *settings)
    assert launched.returncode == 0, launched.stderr
    assert json.loads(launched.stdout)["status"] == {"ok": 8}
    monkeypatch.chdir(tmp_path)
    _, (launch_config,) = resume_run(run, ())
    assert launch_config.config.model.template == {"file": str(path.parent / "chat.jinja")}


@pytest.mark.parametrize("command", ["run", "doctor"])
@pytest.mark.parametrize(("settings", "message"), TEMPLATE_ERRORS)
def test_a_bad_template_or_parser_has_the_exit_code_of_a_bad_configuration(
    repository: Path, tmp_path: Path, command: str, settings: list[str], message: str
) -> None:
    config = repository / "configs" / "color_codeword.yaml"
    result = run_cli(command, str(config), *set_options("tasks.count=1", f"run.directory={tmp_path}", *settings))
    assert result.returncode == 2
    assert re.search(message, " ".join((result.stdout + result.stderr).split()))
