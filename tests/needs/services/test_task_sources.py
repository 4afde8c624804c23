"""Tasks from Parquet files and from Hugging Face data sets."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, TaskSettings
from rollout.records.task import Task
from rollout.tasks.sources import TaskSourceError, count_rows_used, iter_tasks


class SourceEnvironment(Environment):
    """An environment whose tasks come from a source."""

    async def run(self, task: Task, model: Model) -> Score:
        raise AssertionError


def listed(source: str, **settings: int) -> list[Task]:
    return list(iter_tasks(SourceEnvironment(EnvironmentSettings()), TaskSettings(source=source, **settings)))


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set variables that the packages read when they are first imported."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hugging-face"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set in a directory, which needs no hub."""
    rows = {"id": [f"q{n}" for n in range(300)], "question": [f"{n}+{n}" for n in range(300)], "steps": [[1, 2]] * 300}
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table(rows), tmp_path / "data" / "train.parquet", row_group_size=100)
    parquet.write_table(pyarrow.table({"question": ["of the test"]}), tmp_path / "data" / "test.parquet")
    return tmp_path / "data"


def test_each_row_of_a_parquet_file_is_a_task(data: Path) -> None:
    tasks = listed(str(data / "train.parquet"), count=250)
    assert [task.id for task in tasks] == [f"q{n}" for n in range(250)]
    settings = TaskSettings(source=str(data / "train.parquet"), count=250)
    assert str(count_rows_used(settings, 250)) == "250 of 300 rows of train.parquet (tasks.count)"
    assert len(listed(str(data / "train.parquet"))) == 300
    assert tasks[249].data == {"id": "q249", "question": "249+249", "steps": [1, 2]}


def test_an_invalid_or_absent_parquet_file_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not really")
    with pytest.raises(TaskSourceError, match=r"a\.parquet: "):
        listed(str(tmp_path / "a.parquet"))
    with pytest.raises(TaskSourceError, match="No such file"):
        listed(str(tmp_path / "b.parquet"))


def test_each_row_of_a_split_is_a_task(data: Path) -> None:
    tasks = listed(f"hf://{data}", count=3)
    assert [(task.id, task.data["question"]) for task in tasks] == [("q0", "0+0"), ("q1", "1+1"), ("q2", "2+2")]
    three = TaskSettings(source=f"hf://{data}", count=3)
    assert str(count_rows_used(three, 3)) == f"3 of 300 rows of {data} (tasks.count)"
    assert len(listed(f"hf://{data}")) == 300
    (other,) = listed(f"hf://{data}?split=test")
    assert (other.id, other.data["question"]) == ("000000", "of the test")  # its id is null


def test_an_absent_data_set_is_a_named_error(data: Path) -> None:
    with pytest.raises(TaskSourceError, match=r"tasks\.source hf://.*validation"):
        listed(f"hf://{data}?split=validation")
    with pytest.raises(TaskSourceError, match=r"tasks\.source hf://nobody/nothing: "):
        listed("hf://nobody/nothing")
