"""Tasks: where they come from, and how they are ordered."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError
from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, TaskSettings
from rollout.records.task import Task
from rollout.tasks.orders import OrderError, RolloutOrder, TasksUnusable, decode_order, encode_order, iter_orders
from rollout.tasks.sources import TaskSourceError, iter_tasks
from transports.codec import encode


class Own(Environment):
    """Has one task of its own."""

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        yield Task(id="own", index=0, seed=1)

    async def run(self, task: Task, model: Model) -> Score:
        return Score(0.0)


ENVIRONMENT = Own(EnvironmentSettings())


def listed(source: Path | str | None, **settings: int) -> list[Task]:
    return list(iter_tasks(ENVIRONMENT, TaskSettings(source=None if source is None else str(source), **settings)))


def source_error(source: Path | str) -> str:
    with pytest.raises(TaskSourceError) as caught:
        listed(source)
    return str(caught.value)


def test_without_a_source_the_environment_is_asked() -> None:
    assert [task.id for task in listed(None)] == ["own"]


def test_each_line_of_a_file_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"id": "a/b", "question": "2+2"}\n\n{"question": "3+3"}\n{"id": 7}\n')
    tasks = listed(file)
    assert [(task.id, task.index, task.data.get("question")) for task in tasks] == [
        ("a/b", 0, "2+2"),
        ("000001", 1, "3+3"),
        ("7", 2, None),
    ]
    assert [task.id for task in listed(file, count=2)] == ["a/b", "000001"]


def test_a_task_keeps_its_seed_wherever_it_stands(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text('{"id": "a"}\n{"id": "b"}\n')
    second.write_text('{"id": "b"}\n')
    assert listed(first)[1].seed == listed(second)[0].seed
    assert listed(first)[1].seed != listed(first, seed=1)[1].seed


def test_what_is_wrong_with_a_source_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    assert "No such file" in source_error(file)
    file.write_text('{"id": "a"}\n{"id":\n')
    assert f"{file}:2: this line is not JSON" in source_error(file)
    file.write_text("[1]\n")
    assert f"{file}:1: expected an object" in source_error(file)
    file.write_text('{"id": "a"}\n{"id": "a"}\n')
    assert "row 1 has the id 'a' of an earlier row" in source_error(file)
    assert "expected a .jsonl or .parquet file" in source_error("tasks.csv")
    assert "rollout launch" in source_error("queue")


@pytest.mark.parametrize(
    ("package", "source", "extra"),
    [("pyarrow", "tasks.parquet", "parquet"), ("datasets", "hf://owner/name", "datasets")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, source: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'rollout[{extra}]'" in source_error(source)


def test_a_relative_source_is_relative_to_the_yaml(repository: Path, tmp_path: Path) -> None:
    text = (repository / "configs" / "color_codeword.yaml").read_text()
    (tmp_path / "env.yaml").write_text(text.replace("tasks:\n", "tasks:\n  source: data/tasks.jsonl\n"))
    assert load_config(tmp_path / "env.yaml").tasks.source == str(tmp_path / "data" / "tasks.jsonl")
    remote = load_config(tmp_path / "env.yaml", ("tasks.source=hf://owner/name?split=test",))
    assert remote.tasks.source == "hf://owner/name?split=test"
    with pytest.raises(ConfigFileError, match=r"tasks\.source"):
        load_config(tmp_path / "env.yaml", ("tasks.source=[1]",))


def test_every_sample_of_a_task_is_an_order_of_one_group() -> None:
    ordered = list(iter_orders(lambda: ENVIRONMENT, TaskSettings(group_size=3)))
    assert [order.rollout_id for order in ordered] == ["own.0", "own.1", "own.2"] == ordered[0].group_rollout_ids


@given(
    name=st.text(max_size=40),
    seed=st.integers(0, 2**63 - 1),
    data=st.dictionaries(
        st.text(max_size=5), st.integers(-(2**31), 2**31) | st.text(max_size=9) | st.none(), max_size=4
    ),
    version=st.none() | st.text(max_size=5),
)
def test_an_order_is_read_as_it_was_written(name: str, seed: int, data: dict[str, object], version: str | None) -> None:
    order = RolloutOrder(Task(name, 3, seed, data), 1, 4, version)
    assert decode_order(encode_order(order)) == order


@pytest.mark.parametrize("wire", [None, [], {}, {"task": 1}, {"task": {"id": "a"}}, {"task": {}, "sample": "x"}])
def test_what_is_no_order_is_refused(wire: object) -> None:
    with pytest.raises(OrderError):
        decode_order(encode(wire))


@pytest.mark.parametrize(
    ("given", "expected_text"),
    [
        ([Task("a", 0, 1), Task("a", 1, 2)], "two tasks with the id 'a'"),
        ([Task(5, 0, 1)], "whose id is a text"),  # type: ignore[arg-type]
        (["a"], "whose id is a text"),
        (None, "cannot be listed: TypeError"),
    ],
)
def test_tasks_that_cannot_be_told_apart_are_refused(given: Any, expected_text: str) -> None:
    class Wrong(type(ENVIRONMENT)):  # type: ignore[misc]
        def tasks(self, tasks: TaskSettings) -> Any:
            yield from given

    with pytest.raises(TasksUnusable, match=expected_text):
        list(iter_orders(lambda: Wrong(ENVIRONMENT.settings), TaskSettings()))
