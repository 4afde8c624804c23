"""A launch checks its set-up first. If it is bad, no run is created, and no worker starts."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from rollout.doctor.before_launch import check_before_launch
from rollout.doctor.queues import _ASKING, QueueAnswer
from rollout.doctor.results import CheckStatus
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import create_run, load_launch_configs
from tests.unit.cli.in_process import run_cli, set_options
from tests.unit.doctor.template_errors import TEMPLATE_ERRORS


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


@pytest.fixture
def silent_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a queue that never answers."""

    async def answer(url: str) -> QueueAnswer:
        if url.endswith("/silent"):
            await anyio.sleep_forever()
        return QueueAnswer(CheckStatus.OK, "it answers")

    monkeypatch.setitem(_ASKING, "file", answer)
    monkeypatch.setattr("rollout.doctor.queues._ANSWER_TIMEOUT", 0.05)
    return f"file://{tmp_path}/silent"


def no_run(directory: Path) -> bool:
    return not (directory / "runs").exists()


def launch(config: Path, tmp_path: Path, *settings: str, options: Sequence[str] = ()) -> tuple[int, str, str]:
    all_settings = set_options("tasks.count=1", f"run.directory={tmp_path}/runs", *settings)
    result = run_cli("launch", str(config), *options, *all_settings)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("key", ["url", "tasks", "control"])
def test_a_launch_with_a_dead_queue_creates_no_run(config: Path, tmp_path: Path, silent_queue: str, key: str) -> None:
    code, out, err = launch(config, tmp_path, f"queue.{key}={silent_queue}")
    assert (code, out) == (1, "")
    assert err.startswith(f"rollout: queue.{key}: {silent_queue}: no answer within 0.05 s. Check the host and the port")
    assert no_run(tmp_path)


def test_the_queues_of_a_run_in_a_relative_directory_are_checked(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    code, _, err = launch(config, tmp_path, options=["--run", "mine"])
    assert code == 1
    assert f"{tmp_path}/mine cannot be written: Not a directory" in err


def test_a_dead_queue_is_the_one_json_object(config: Path, tmp_path: Path, silent_queue: str) -> None:
    code, out, _ = launch(config, tmp_path, f"queue.url={silent_queue}", options=["--json", "--workers", "0"])
    assert code == 1
    assert "no answer within 0.05 s" in json.loads(out)["error"]


def test_a_run_is_not_continued_with_a_dead_queue(config: Path, tmp_path: Path, silent_queue: str) -> None:
    run, _ = create_run([config], ["tasks.count=1", f"run.directory={tmp_path}/runs"])
    result = run_cli("launch", "--resume", str(run.path), "--set", f"queue.url={silent_queue}")
    assert result.returncode == 1
    assert f"rollout: queue.url: {silent_queue}: no answer" in result.stderr
    assert list((run.path / "workers").iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("images.allow=[/none]", "images.allow: /none is not a directory."),
        ("model.path=/none", "model.path: /none does not exist."),
        ("queue.url=memory://mine", "queue.url is memory://mine, but workers are other processes"),
        ("queue.url=file://{run_dir}/t?high_water=80KB", "two batches of 64 rollouts"),
    ],
)
def test_a_bad_configuration_ends_a_launch_with_the_code_of_doctor(
    config: Path, tmp_path: Path, setting: str, problem: str
) -> None:
    code, _, err = launch(config, tmp_path, setting)
    assert code == 2
    assert problem in err
    assert no_run(tmp_path)


@pytest.mark.parametrize("setting", ["images.allow=[/none]", "model.path=/none", "engine.api_key_env=NOT_SET"])
def test_what_only_workers_need_is_not_checked_where_none_start(config: Path, tmp_path: Path, setting: str) -> None:
    launch_configs = load_launch_configs([config], [setting, "engine.urls=['http://127.0.0.1:1']"])
    assert check_before_launch(launch_configs, tmp_path / "run", has_own_workers=False) == []
    with pytest.raises(ConfigurationError):
        check_before_launch(launch_configs, tmp_path / "run", has_own_workers=True)


def test_a_check_that_cannot_be_made_is_one_line(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell_nothing(url: str) -> QueueAnswer:
        return QueueAnswer(CheckStatus.UNKNOWN, "nobody knows")

    monkeypatch.setitem(_ASKING, "file", tell_nothing)
    url = f"file://{tmp_path}/unknown"
    launch_configs = load_launch_configs([config], [f"queue.tasks={url}"])
    assert "queue.tasks was not checked: " + f"{url}: nobody knows" in check_before_launch(
        launch_configs * 2, None, has_own_workers=True
    )


def test_a_launch_whose_rollouts_do_not_fit_on_the_disk_starts_no_worker(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=1, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    code, _, err = launch(config, tmp_path)
    assert code == 1
    assert "4 rollouts write at least 19.2 kB and 8 files" in err
    assert list((tmp_path / "runs").glob("*/workers/*")) == []


def test_a_launch_with_an_unknown_renderer_creates_no_run(config: Path, tmp_path: Path) -> None:
    code, out, err = launch(config, tmp_path, "model.renderer=qwen3-vll")
    assert (code, out) == (2, "")
    assert "Did you mean 'qwen3-vl'?" in err
    assert no_run(tmp_path)


@pytest.mark.parametrize(("settings", "message"), TEMPLATE_ERRORS)
def test_a_launch_with_a_bad_template_or_parser_creates_no_run(
    config: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    code, out, err = launch(config, tmp_path, *settings)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert no_run(tmp_path)


def test_a_launch_with_the_renderer_of_another_model_creates_no_run(
    config: Path, tmp_path: Path, tiny_model: Path
) -> None:
    checkpoint = shutil.copytree(tiny_model, tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text('{"model_type": "qwen3_vl"}')
    code, out, err = launch(config, tmp_path, "model.renderer=qwen3", f"model.path={checkpoint}")
    assert (code, out) == (2, "")
    assert "Set model.renderer to qwen3-vl" in err
    assert no_run(tmp_path)
