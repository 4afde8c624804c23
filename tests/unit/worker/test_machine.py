"""A worker checks its machine in a thread, before it asks for engines and orders."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rollout.config.load import Config
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunDirectory
from rollout.worker import process
from rollout.worker.process import WorkerRunner
from tests.unit.worker.harness import ScriptedEnvironment


class NeedsACompass(ScriptedEnvironment):
    threads: ClassVar[list[threading.Thread]] = []

    @classmethod
    def check_machine(cls, settings: Any) -> str | None:
        cls.threads.append(threading.current_thread())
        raise ConfigurationError("install the compass")


async def test_a_worker_on_a_machine_that_lacks_something_ends_before_it_starts_an_engine(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[object] = []
    monkeypatch.setattr(process, "find_or_start_engines", lambda *arguments: engines.append(arguments))
    runner = WorkerRunner(replace(config, environment_class=NeedsACompass), RunDirectory(tmp_path / "run"), "w")
    runner.directory.create()
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="install the compass")):
        await runner._set_up_and_play()
    (thread,) = NeedsACompass.threads
    assert thread is not threading.main_thread()
    assert engines == []
