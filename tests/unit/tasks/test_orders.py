"""The sources of tasks, and the orders that are made of tasks."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError
from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, TaskSettings
from rollout.records.task import Task
from rollout.tasks.orders import OrderError, RolloutOrder, TasksUnusable, decode_order, encode_order, iter_orders
from rollout.tasks.sources import TaskSourceError, count_rows_used, iter_tasks
from transports.codec import encode


class OneTask(Environment):
    """Yields one task."""

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        yield Task(id="own", index=0, seed=1)

    async def run(self, task: Task, model: Model) -> Score:
        return Score(0.0)


ENVIRONMENT = OneTask(EnvironmentSettings())


def listed(source: Path | str | None, **settings: int) -> list[Task]:
    return list(iter_tasks(ENVIRONMENT, TaskSettings(source=None if source is None else str(source), **settings)))


def source_error(source: Path | str) -> str:
    with pytest.raises(TaskSourceError) as caught:
        listed(source)
    return str(caught.value)


def test_without_a_source_the_environment_yields_the_tasks() -> None:
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


def test_without_a_count_all_rows_are_used(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("{}\n" * 40)
    assert len(listed(file)) == 40
    assert TaskSettings().count == 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "40 of 40 rows of cities.jsonl"),
        ({"count": 40}, "40 of 40 rows of cities.jsonl"),
        ({"count": 16}, "16 of 40 rows of cities.jsonl (tasks.count)"),
        ({"count": 100}, "40 of 40 rows of cities.jsonl; tasks.count is 100"),
    ],
)
def test_the_number_of_used_rows_is_described(tmp_path: Path, settings: dict[str, int], expected: str) -> None:
    file = tmp_path / "cities.jsonl"
    file.write_text("{}\n\n" * 40)
    task_settings = TaskSettings(source=str(file), **settings)
    assert str(count_rows_used(task_settings, len(listed(file, **settings)))) == expected


def test_rows_of_a_huge_file_are_counted_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.tasks.sources._MAX_ROWS_COUNTED", 20)
    file = tmp_path / "huge.jsonl"
    file.write_text("{}\n" * 21)
    found = count_rows_used(TaskSettings(source=str(file), count=16), 16)
    assert str(found) == "16 of more than 20 rows of huge.jsonl (tasks.count)"


def test_rows_of_a_pipe_need_a_count(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stream.jsonl")
    assert "Set tasks.count to the number" in source_error(tmp_path / "stream.jsonl")
    counted = TaskSettings(source=str(tmp_path / "stream.jsonl"), count=16)
    assert str(count_rows_used(counted, 16)) == "16 rows of stream.jsonl (tasks.count)"


def test_tasks_without_a_source_have_no_rows() -> None:
    assert count_rows_used(TaskSettings(), 16) is None
    with pytest.raises(ValidationError, match=r"0 means all rows of tasks\.source, but tasks\.source is not set"):
        TaskSettings(count=0)


def test_the_seed_of_a_task_does_not_depend_on_its_row(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text('{"id": "a"}\n{"id": "b"}\n')
    second.write_text('{"id": "b"}\n')
    assert listed(first)[1].seed == listed(second)[0].seed
    assert listed(first)[1].seed != listed(first, seed=1)[1].seed


def test_an_error_in_a_source_is_reported_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    assert "No such file" in source_error(file)
    file.write_text('{"id": "a"}\n{"id":\n')
    assert f"{file}:2: this line is not JSON" in source_error(file)
    file.write_text("[1]\n")
    assert f"{file}:1: expected an object" in source_error(file)
    file.write_text('{"id": "a"}\n{"id": "a"}\n')
    assert "row 1 has the same id as an earlier row, 'a'" in source_error(file)
    file.write_bytes(b'{"id": "a"}\n{"id": "\xff"}\n')
    assert f"{file}:2: this line is not JSON in UTF-8" in source_error(file)
    file.write_text('{"a": ' + "[" * 5000 + "]" * 5000 + "}")
    assert f"{file}:1: this line is not JSON in UTF-8: depth limit exceeded" in source_error(file)
    file.write_text('{"id": 1000000000000000000000}')
    assert "row 0 has the id '1e+21'; expected a string, or a whole number of at most 64 bits" in source_error(file)
    assert "expected a .jsonl or .parquet file" in source_error("tasks.csv")
    assert "File name too long" in source_error(f"/{'a' * 300}.jsonl")
    assert "embedded null byte" in source_error("/a\0b.jsonl")
    assert "rollout launch" in source_error("queue")


def test_a_byte_order_mark_before_the_first_row_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"id": "a"}\n', "utf-8-sig")
    assert [task.id for task in listed(tmp_path / "tasks.jsonl")] == ["a"]


def test_a_line_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.tasks.sources._MAX_LINE_BYTES", 20)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a"}\n{"id": "' + "b" * 20)
    assert "tasks.jsonl:2: this line has more than 20 bytes" in source_error(tmp_path / "tasks.jsonl")


@pytest.mark.parametrize(
    ("package", "source", "extra"),
    [("pyarrow", "tasks.parquet", "parquet"), ("datasets", "hf://owner/name", "datasets")],
)
def test_the_error_for_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, source: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'rollout-rl[{extra}]'" in source_error(source)


def test_a_relative_source_is_relative_to_the_yaml(repository: Path, tmp_path: Path) -> None:
    text = (repository / "configs" / "color_codeword.yaml").read_text()
    (tmp_path / "env.yaml").write_text(text.replace("tasks:\n", "tasks:\n  source: data/tasks.jsonl\n"))
    assert load_config(tmp_path / "env.yaml").tasks.source == str(tmp_path / "data" / "tasks.jsonl")
    remote = load_config(tmp_path / "env.yaml", ("tasks.source=hf://owner/name?split=test",))
    assert remote.tasks.source == "hf://owner/name?split=test"
    with pytest.raises(ConfigFileError, match=r"tasks\.source"):
        load_config(tmp_path / "env.yaml", ("tasks.source=[1]",))


def test_all_rollouts_of_a_task_are_orders_of_one_group() -> None:
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
def test_an_order_is_decoded_unchanged(name: str, seed: int, data: dict[str, object], version: str | None) -> None:
    order = RolloutOrder(Task(name, 3, seed, data), 1, 4, version)
    assert decode_order(encode_order(order)) == order


def order_wire(**task: object) -> dict[str, object]:
    return {"task": {"id": "a", "index": 0, "seed": 0, "data": {}, **task}, "sample": 0, "group_size": 1}


@pytest.mark.parametrize(
    "wire",
    [
        *(None, [], {}, {"task": 1}, {"task": {"id": "a"}}, {"task": {}, "sample": "x"}),
        *(order_wire(id=5), order_wire(id="\ud83d"), order_wire(data=None), order_wire(data={"a": "\ud83d"})),
        *({**order_wire(), "sample": sample} for sample in (float("inf"), 1, -1, True)),
        *({**order_wire(), "group_size": size} for size in (0, -1, 10**15)),
    ],
)
def test_a_record_that_is_not_an_order_is_refused(wire: object) -> None:
    with pytest.raises(OrderError):
        decode_order(encode(wire))


def test_integers_of_numpy_become_integers() -> None:
    order = RolloutOrder(Task("a", np.int64(3), np.int64(4)), 0, 1)  # type: ignore[arg-type]
    assert decode_order(encode_order(order)).task == Task("a", 3, 4)


@pytest.mark.parametrize(
    ("given", "expected_text"),
    [
        ([Task("a", 0, 1), Task("a", 1, 2)], "two tasks with the id 'a'"),
        ([Task(5, 0, 1)], "whose id is a string"),  # type: ignore[arg-type]
        ([Task("a", "0", 1)], "its index and its seed must be whole numbers"),  # type: ignore[arg-type]
        ([Task("a", 0, 1, {"x": "\ud83d"})], r"its data cannot be recorded: the text '\\ud83d' contains half"),
        (["a"], "whose id is a string"),
        ([Task("\ud83d", 0, 1)], r"the id '\\ud83d', which has a lone surrogate"),
        ([Task("a", 0, 1, None)], "its data is None, but it must be a mapping"),  # type: ignore[arg-type]
        (None, r"test_orders\.py\", line \d+, in tasks\n(.|\n)*TypeError"),
    ],
)
def test_wrong_tasks_of_an_environment_are_refused(given: Any, expected_text: str) -> None:
    class Wrong(type(ENVIRONMENT)):  # type: ignore[misc]
        def tasks(self, tasks: TaskSettings) -> Any:
            yield from given

    with pytest.raises(TasksUnusable, match=expected_text):
        list(iter_orders(lambda: Wrong(ENVIRONMENT.settings), TaskSettings()))


@pytest.mark.parametrize("error", [GeneratorExit(), SystemExit(0), ValueError("cut \ud83d")], ids=repr)
@pytest.mark.parametrize("place", ["__init__", "tasks"])
def test_an_error_while_tasks_are_listed_is_named(place: str, error: BaseException) -> None:
    def fail(*_: object) -> Any:
        raise error

    wrong = type("Wrong", (type(ENVIRONMENT),), {place: fail})
    with pytest.raises(TasksUnusable, match=f"the tasks cannot be listed: (.|\n)*{type(error).__name__}"):
        list(iter_orders(lambda: wrong(ENVIRONMENT.settings), TaskSettings()))
