"""A worker whose start fails; test_supervisor.py tests the rest of `rollout.launch.local`."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout.launch.local import LocalPlace
from rollout.launch.places import NotStarted
from tests.procfs import process_state

COMMAND = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


class Groups:
    """Replaces the reaper."""

    def __init__(self) -> None:
        self.added: list[int] = []
        self.left: set[int] = set()

    def add_group(self, group: int) -> None:
        self.added.append(group)
        self.left.add(group)

    def remove_group(self, group: int) -> None:
        self.left.remove(group)

    def close(self) -> None:
        pass


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    groups = Groups()
    monkeypatch.setattr("rollout.launch.local.ReaperProcess", lambda: groups)
    return groups


def require_ended(groups: Groups) -> None:
    (pid,) = groups.added
    assert process_state(pid) is None
    assert not groups.left


async def test_a_worker_whose_link_cannot_be_opened_is_ended(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**options: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("asyncio.open_connection", fail)
    with anyio.fail_after(30):
        async with LocalPlace() as place:
            with pytest.raises(NotStarted, match="the process of w could not start: Too many open files"):
                await place.start("w", COMMAND, tmp_path / "w.out")
            require_ended(groups)


async def test_a_worker_whose_start_is_cancelled_is_ended(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancel(**options: Any) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    monkeypatch.setattr("asyncio.open_connection", cancel)
    with anyio.fail_after(30):
        async with LocalPlace() as place:
            with anyio.CancelScope() as scope:
                await place.start("w", COMMAND, tmp_path / "w.out")
            require_ended(groups)
