"""The errors for a process that may open too few files."""

import errno
import resource
from pathlib import Path

import pytest

from rollout.cli.open_files import describe_missing_files
from tests.unit.cli.in_process import run_cli
from transports import QueueStorageError


@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_run_does_not_begin_if_it_may_open_too_few_files(
    repository: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    result = run_cli(command, str(repository / "configs" / "color_codeword.yaml"))
    assert result.returncode == 2
    assert result.stderr.startswith("rollout: this process may open only 20 files; a run needs at least 64")


def test_the_error_for_too_many_open_files_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("rollout.cli.queue_access.open_existing_queue", fail)
    result = run_cli("queue", "stats", f"file://{tmp_path}")
    assert result.returncode == 1
    assert result.stderr.startswith("rollout: too many files are open: this process may open ")
    assert "Raise the limit (ulimit -n 4096)" in result.stderr


def test_an_error_that_was_caused_by_too_many_open_files_is_recognized() -> None:
    error = QueueStorageError("the directory cannot be used")
    assert describe_missing_files(error) is None
    error.__context__ = ExceptionGroup("", [OSError(errno.ENFILE, "Too many open files in system")])
    assert "the directory cannot be used" in (describe_missing_files(error) or "")
