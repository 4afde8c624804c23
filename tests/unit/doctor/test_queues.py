"""`rollout doctor` asks the queues, and creates and changes nothing there."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from rollout.config.load import Config, load_config
from rollout.doctor.queues import _ASKING, can_be_asked, check_other_queue, check_trajectories_queue
from rollout.doctor.results import CheckStatus
from transports import Lease, Queue, QueueStorageError, QueueURLError, open_queue, register_transport
from transports.memory import MemoryQueue


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def with_queue(config: Path, url: str, key: str = "url") -> Config:
    return load_config(config, [f"queue.{key}={url}"])


def test_a_queue_that_never_answers_is_an_error_after_a_deadline(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_answer(url: str) -> NoReturn:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setitem(_ASKING, "file", never_answer)
    monkeypatch.setattr("rollout.doctor.queues._ANSWER_TIMEOUT", 0.05)
    with pytest.raises(QueueStorageError, match=r"^queue\.tasks: file://.*: no answer within 0\.05 s\. Check the host"):
        check_other_queue(with_queue(config, f"file://{tmp_path}", "tasks"), "tasks", tmp_path)


# file://


def test_a_directory_that_does_not_exist_is_not_created(config: Path, tmp_path: Path) -> None:
    result = check_trajectories_queue(with_queue(config, f"file://{tmp_path}/new/queue"), tmp_path / "run")
    assert result.status is CheckStatus.OK
    assert f"it can be created in {tmp_path} (" in result.message
    assert list(tmp_path.iterdir()) == []


def test_a_queue_that_exists_is_not_changed(config: Path, tmp_path: Path) -> None:
    async def put_one() -> None:
        async with open_queue(f"file://{tmp_path}?partitions=2") as queue:
            await queue.put((b"record",), key="k")

    anyio.run(put_one)
    before = sorted(tmp_path.rglob("*"))
    result = check_trajectories_queue(with_queue(config, f"file://{tmp_path}"), tmp_path / "run")
    assert f"it exists in {tmp_path} (" in result.message
    assert sorted(tmp_path.rglob("*")) == before


def test_another_number_of_partitions_is_an_error_of_the_configuration(config: Path, tmp_path: Path) -> None:
    async def create() -> None:
        async with open_queue(f"file://{tmp_path}?partitions=2"):
            pass

    anyio.run(create)
    with pytest.raises(QueueURLError, match=r"queue\.url: .*created with partitions=2"):
        check_trajectories_queue(with_queue(config, f"file://{tmp_path}?partitions=3"), tmp_path / "run")


def test_a_directory_that_cannot_be_written_is_an_error(config: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(QueueStorageError, match=rf"queue\.url: .*{tmp_path}/a_file cannot be written: Not a directory"):
        check_trajectories_queue(with_queue(config, f"file://{tmp_path}/a_file/queue"), tmp_path / "run")


def test_a_queue_that_this_user_may_not_write_is_an_error(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create() -> None:
        async with open_queue(f"file://{tmp_path}"):
            pass

    anyio.run(create)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "p0")
    with pytest.raises(QueueStorageError, match=rf"{tmp_path}/p0 cannot be written: this user may not write there"):
        check_trajectories_queue(with_queue(config, f"file://{tmp_path}"), tmp_path / "run")


def test_a_queue_in_the_directory_of_the_run_has_no_line_of_its_own(config: Path, tmp_path: Path) -> None:
    assert check_other_queue(load_config(config), "tasks", tmp_path) is None
    assert check_other_queue(load_config(config), "control", tmp_path) is None


# Other transports


def test_a_queue_in_memory_is_not_asked(config: Path, tmp_path: Path) -> None:
    result = check_trajectories_queue(with_queue(config, "memory://mine"), tmp_path)
    assert result.status is CheckStatus.NOTHING
    assert "no other process can reach it" in result.message


def test_a_transport_of_another_package_is_unknown(config: Path, tmp_path: Path) -> None:
    def open_pigeon(url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
        return MemoryQueue(url.replace("pigeon", "memory"), lease=lease, consume=consume)

    register_transport("pigeon", open_pigeon)
    result = check_trajectories_queue(with_queue(config, "pigeon://loft"), tmp_path)
    assert result.status is CheckStatus.UNKNOWN
    assert "not asked, because the first operation of pigeon:// may create the queue" in result.message
    assert not can_be_asked("pigeon://loft")
