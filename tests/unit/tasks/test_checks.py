"""The first tasks are checked before a run plays: one error names the task, its row and what it lacks."""

import json
from pathlib import Path

import pytest

from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, TaskSettings
from rollout.environments.program import Program
from rollout.environments.program_settings import ProgramSettings
from rollout.errors import ConfigurationError
from rollout.records.task import Task
from rollout.tasks.checks import TaskRefused, check_tasks
from rollout.tasks.orders import RolloutOrder
from tests.unit.cli.in_process import run_cli


class NeedsColor(Environment):
    """Refuses tasks without a color."""

    def check_task(self, task: Task) -> None:
        if not task.data["color"]:
            raise ConfigurationError("the task has no color.")

    async def run(self, task: Task, model: Model) -> Score:
        return Score(0.0)


def check(*tasks: dict[str, str], source: str | None = None, limit: int = 100) -> None:
    orders = [RolloutOrder(Task(f"t{i}", i, 0, data), sample, 2) for i, data in enumerate(tasks) for sample in (0, 1)]
    check_tasks(lambda: NeedsColor(EnvironmentSettings()), TaskSettings(source=source), orders, limit)


RED, NONE = {"color": "red"}, {"color": ""}


def test_the_error_names_the_task_and_its_row() -> None:
    with pytest.raises(TaskRefused, match=r"^task t1 \(row 2 of tasks\.jsonl\): the task has no color\.$"):
        check(RED, NONE, source="/data/tasks.jsonl")
    with pytest.raises(TaskRefused, match=r"^task t0: the task has no color\.$"):
        check(NONE)


def test_tasks_behind_the_limit_are_not_checked() -> None:
    check(RED, RED, NONE, limit=2)
    with pytest.raises(TaskRefused):
        check(RED, RED, NONE, limit=3)


def test_an_unexpected_error_of_a_check_shows_the_line_of_the_user() -> None:
    with pytest.raises(TaskRefused) as raised:
        check({})
    assert "NeedsColor.check_task (" in str(raised.value)
    assert 'if not task.data["color"]:' in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"command": ["true", "{task.name}"]}, "environment.command"),
        ({"agent": "codex", "prompt": "{task.name}"}, "environment.prompt"),
        ({"agent": "codex", "prompt": "", "arguments": ["{task.name}"]}, "environment.arguments"),
        ({"command": ["true"], "stdin": "{task.name}"}, "environment.stdin"),
        ({"command": ["true"], "template": "{task.name}"}, "environment.template"),
        ({"command": ["true"], "env": {"WHO": "{task.name}"}}, "environment.env.WHO"),
        ({"command": ["true"], "files": {"notes.txt": "{task.name}"}}, "environment.files.notes.txt"),
        ({"command": ["true"], "score": {"command": ["{task.name}"]}}, "environment.score.command"),
        (
            {"command": ["true"], "score": {"command": ["true"], "template": "{task.name}"}},
            "environment.score.template",
        ),
    ],
)
def test_a_program_refuses_a_task_without_a_value_for_a_placeholder(settings: dict[str, object], key: str) -> None:
    program = Program(ProgramSettings.model_validate({"score": "program", **settings}))
    program.check_task(Task("0", 0, 0, {"name": "Ada"}))
    with pytest.raises(ConfigurationError, match=f"^the task has no 'name', which {key} uses; it has city, id, "):
        program.check_task(Task("0", 0, 0, {"city": "Oslo"}))


def test_a_known_agent_needs_a_prompt_in_the_task() -> None:
    program = Program(ProgramSettings.model_validate({"agent": "codex", "score": "program"}))
    with pytest.raises(ConfigurationError, match=r"^the task has no 'prompt', which environment\.prompt uses; "):
        program.check_task(Task("0", 0, 0, {"question": "Why?"}))


@pytest.mark.parametrize("command", ["doctor", "run", "launch"])
def test_a_missing_value_is_found_before_anything_is_played(tmp_path: Path, command: str) -> None:
    rows = [{"id": "a", "name": "Ada"}, {"id": "b", "city": "Oslo"}]
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = tmp_path / "config.yaml"
    config.write_text(
        "environment:\n  class: rollout.environments.program:Program\n  command: ['{python}', '-c', 'pass']\n"
        "  files: {notes.txt: 'for {task.name}'}\n  score: program\n"
        "tasks: {source: tasks.jsonl}\nrun: {name: notes, directory: runs}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    ended = run_cli(command, str(config))
    assert ended.returncode == 2
    problem = (
        "task b (row 2 of tasks.jsonl): the task has no 'name', which environment.files.notes.txt uses; it has city, "
    )
    assert problem in ended.stdout + ended.stderr
    assert list(tmp_path.glob("runs/*/claims/*/*")) == []
