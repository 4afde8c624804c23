"""The checks of `rollout doctor` that need no engine."""

import re
import shutil
from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckStatus, exit_code
from rollout.environments.color_codeword import ColorCodeword
from tests.unit.doctor.problems import only_problem
from tests.unit.doctor.template_errors import TEMPLATE_ERRORS


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def test_a_good_configuration_has_one_result_for_each_check(config: Path) -> None:
    results = run_checks(load_config(config), live=False)
    assert exit_code(results) == 0
    subjects = ["configuration", "environment", "tasks", "images", "engine", "model", "queue", "disk"]
    assert [result.subject for result in results] == subjects
    assert {result.status for result in results} == {CheckStatus.OK}


@pytest.mark.parametrize("limit", ["high_water=80KB", "high_water_records=300"])
@pytest.mark.parametrize("live", [False, True])
def test_a_high_water_below_two_batches_is_bad(config: Path, limit: str, *, live: bool) -> None:
    url = f"queue.url=file://{{run_dir}}/trajectories?{limit}"
    bad = only_problem(load_config(config, [url]), live=live)
    assert bad.subject == "queue"
    assert "two batches of 64 rollouts (policy.batch)" in bad.message


@pytest.mark.parametrize(("settings", "message"), TEMPLATE_ERRORS)
def test_a_bad_template_or_parser_is_an_error_of_the_configuration(
    config: Path, settings: list[str], message: str
) -> None:
    bad = only_problem(load_config(config, settings))
    assert bad.subject == "model"
    assert re.search(message, bad.message)
    assert bad.is_configuration_error


def test_a_checkpoint_without_a_template_is_an_error_of_the_configuration(
    config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    bad = only_problem(load_config(config, [f"model.path={model}", "model.renderer=template"]))
    assert "has no chat template" in bad.message
    assert bad.message.endswith("Copy it from the checkpoint, or set model.template.file.")
    assert bad.is_configuration_error


def test_a_missing_directory_of_images_is_bad(config: Path, tmp_path: Path) -> None:
    bad = only_problem(load_config(config, [f"images.allow=[{tmp_path}/none]"]))
    assert (bad.subject, bad.message) == ("images", f"images.allow: {tmp_path}/none is not a directory.")


def test_without_engine_urls_the_live_checks_reach_nothing(config: Path) -> None:
    results = run_checks(load_config(config), live=True)
    assert exit_code(results) == 0
    assert "no engine to check" in results[-1].message


def test_the_tools_of_an_environment_and_the_forgotten_ones_are_named(tmp_path: Path) -> None:
    module = tmp_path.name
    (tmp_path / f"{module}.py").write_text(
        "from rollout import ToolEnvironment, tool\n"
        "@tool\ndef used():\n    'Used.'\n"
        "@tool\ndef forgotten():\n    'Forgotten.'\n"
        "class Desk(ToolEnvironment):\n"
        "    functions = [used]\n"
        "    async def reset(self, task): ...\n"
        "    async def score(self, reply): ...\n"
        "    @tool\n    def look(self):\n        'Look.'\n"
    )
    config = tmp_path / "desk.yaml"
    config.write_text(
        f"environment: {{class: '{module}:Desk'}}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    results = run_checks(load_config(config), live=False)
    assert exit_code(results) == 0
    (found,) = [result.message for result in results if result.subject == "environment"]
    assert "; tools look, used; these tools are not used, because `functions` does not name them: forgotten" in found


def test_what_was_not_asked_for_is_not_ok(config: Path) -> None:
    settings = ["engine.urls=['http://127.0.0.1:1']", "tasks.source=queue"]
    results = run_checks(load_config(config, settings), live=False)
    assert exit_code(results) == 0
    nothing = {result.subject: result.message for result in results if result.status is CheckStatus.NOTHING}
    assert nothing == {
        "engine": "http://127.0.0.1:1: only --live asks it",
        "tasks": "another program puts the orders on file://{run_dir}/tasks/{environment}",
    }


def test_a_directory_of_images_that_cannot_be_read_is_bad(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_config(config, [f"images.allow=[{tmp_path}]"])
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    bad = only_problem(loaded)
    assert (bad.subject, bad.message) == ("images", f"images.allow: this user may not read {tmp_path}.")


def test_an_error_that_is_not_in_the_configuration_has_another_exit_code(config: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    results = run_checks(load_config(config, [f"run.directory={tmp_path}/runs"]), live=False)
    assert exit_code(results) == 1
    assert [result.subject for result in results if result.status is CheckStatus.BAD] == ["queue", "disk"]


def test_a_source_without_rows_is_bad(config: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    bad = only_problem(load_config(config, [f"tasks.source={tmp_path}/none.jsonl"]))
    assert (bad.subject, bad.message.partition(":")[0]) == ("tasks", "there are no tasks")


@pytest.mark.parametrize(("count", "is_said"), [(1000, False), (1001, True)])
def test_tasks_that_no_check_has_seen_are_not_called_checked(
    config: Path, monkeypatch: pytest.MonkeyPatch, count: int, *, is_said: bool
) -> None:
    monkeypatch.setattr(ColorCodeword, "check_task", lambda self, task: None)
    results = run_checks(load_config(config, [f"tasks.count={count}"]), live=False)
    (found,) = [result.message for result in results if result.subject == "tasks"]
    assert ("; check_task has seen the first 1,000" in found) == is_said


MACHINE = """
from rollout.environments.color_codeword import ColorCodeword
from rollout.errors import ConfigurationError

class Checked(ColorCodeword):
    @classmethod
    def check_machine(cls, settings):
        {body}
"""


def checked_config(directory: Path, config: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load a configuration whose environment checks the machine in this way."""
    module = f"checked_{directory.name}"
    (directory / f"{module}.py").write_text(MACHINE.format(body=body))
    monkeypatch.syspath_prepend(str(directory))
    return load_config(config, [f"environment.class={module}:Checked"])


@pytest.mark.parametrize(
    ("body", "finding"),
    [("return 'compass 2.1'", "compass 2.1"), ("pass", "Checked.check_machine found nothing that is missing")],
)
def test_what_the_environment_found_on_the_machine_is_shown(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, finding: str
) -> None:
    results = run_checks(checked_config(tmp_path, config, body, monkeypatch), live=False)
    assert exit_code(results) == 0
    assert [result.message for result in results if result.subject == "machine"] == [finding]


@pytest.mark.parametrize(
    ("body", "problem"),
    [("raise ConfigurationError('install the compass')", "install the compass"), ("1 / 0", "ZeroDivisionError")],
)
def test_what_is_missing_on_the_machine_is_bad(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, problem: str
) -> None:
    bad = only_problem(checked_config(tmp_path, config, body, monkeypatch))
    assert bad.subject == "machine"
    assert problem in bad.message
