"""The processes that the learning example starts beside its trainer: they end with it, and explain their failures."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.grpo_color_codeword.processes import TrainingProcessEnded, log_excerpt, transformers_sampler
from tests.procfs import MarkedProcesses

TIMEOUT = 30.0
TRAINER = """
import sys, time
from pathlib import Path
from examples.grpo_color_codeword.processes import exit_on_signals, rollout_command
exit_on_signals()
with rollout_command(["serve", "embedded"], Path(sys.argv[1]), reads_stdout=True) as engine:
    engine.stdout.readline()
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def marked() -> Iterator[MarkedProcesses]:
    processes = MarkedProcesses()
    yield processes
    processes.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_ends_with_the_trainer(
    repository: Path, tmp_path: Path, marked: MarkedProcesses, signum: signal.Signals
) -> None:
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "engine.log")]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, env=marked.environment) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        assert len(marked.pids()) == 3, (
            "the trainer, its engine, and the process that kills the engine if the trainer was killed"
        )
        trainer.send_signal(signum)
        code = trainer.wait(TIMEOUT)
    marked.wait_until_gone(TIMEOUT)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum)


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    checkpoint = tmp_path / "nowhere"
    with pytest.raises(TrainingProcessEnded, match="the engine ended while it started") as failed:
        with transformers_sampler(checkpoint, tmp_path, tmp_path / "engine.log"):
            pass
    assert "says:\n  rollout: " in str(failed.value)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("codeword: workers 2/2  failed 0\nrollout: no engine\nand its urls\n", "rollout: no engine\n  and its urls"),
        ("one\nTraceback (most recent call last):\n  here\nKeyError: 'x'\n", "Traceback (most recent call last):"),
        ("fine\n(EngineCore) ERROR 11-28 [core.py] no memory\n", "(EngineCore) ERROR 11-28 [core.py] no memory"),
        ("one\ntwo\n", "one\n  two"),
    ],
)
def test_an_excerpt_of_a_log_begins_with_the_first_error(tmp_path: Path, printed: str, shown: str) -> None:
    log = tmp_path / "launch.out"
    log.write_text(printed)
    assert log_excerpt(log).startswith(f"{log} says:\n  {shown}")


def test_an_excerpt_has_at_most_20_lines(tmp_path: Path) -> None:
    log = tmp_path / "launch.out"
    log.write_text("\n".join(f"line {number}" for number in range(500)))
    assert log_excerpt(log).splitlines()[1:] == [f"  line {number}" for number in range(480, 500)]


def test_the_excerpt_of_an_empty_log_says_so(tmp_path: Path) -> None:
    log = tmp_path / "launch.out"
    log.touch()
    assert log_excerpt(log) == f"{log} is empty."
