"""An evaluation between two steps: its result, its errors, and the processes that it must not leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.trainer import EvaluationFailed, evaluate
from tests.procfs import MarkedProcesses

TIMEOUT = 60.0


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[MarkedProcesses]:
    """The processes that are started from now on."""
    found = MarkedProcesses()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    found.kill()


@pytest.fixture
def sleeping(one_line_environment: Callable[[str], str], tmp_path: Path) -> str:
    """A configuration whose rollout writes a file and never ends."""
    return one_line_environment(
        f"import anyio, pathlib; pathlib.Path('{tmp_path}/started').touch(); await anyio.sleep(600)"
    )


def in_directory(directory: Path, *settings: str) -> list[str]:
    return [f"run.directory={directory}", *settings]


def test_an_evaluation_returns_the_means_of_its_rollouts_and_their_directory(repository: Path, tmp_path: Path) -> None:
    settings = ("tasks.count=3", "tasks.group_size=2", "tasks.seed=7", "engine.sampling.temperature=0")
    config = repository / "configs" / "color_codeword.yaml"
    evaluation = evaluate(config, overrides=in_directory(tmp_path, *settings), timeout=TIMEOUT)
    assert (evaluation.rollouts, evaluation.failed, evaluation.reward) == (6, 0, 1.0)
    assert evaluation.metrics == {"codeword_accuracy": 1.0, "turn_accuracy": 1.0}
    assert evaluation.rewards == {}
    assert evaluation.seconds > 0
    assert evaluation.run_directory.parent == tmp_path
    assert "seed: 7" in (evaluation.run_directory / "config.yaml").read_text()


def test_a_rollout_without_a_score_counts_as_failed_and_not_in_the_mean(
    one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    config = one_line_environment("from rollout import Score; return Score(reward=[0.5][task.index])")
    overrides = in_directory(tmp_path, "tasks.count=2", "tasks.group_size=1")
    evaluation = evaluate(config, overrides=overrides, timeout=TIMEOUT)
    assert (evaluation.rollouts, evaluation.failed, evaluation.reward) == (2, 1, 0.5)


def test_an_environment_of_an_evaluation_does_not_see_the_ranks_of_torchrun(
    one_line_environment: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID"]
    kept = ["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
    for name in removed + kept:
        monkeypatch.setenv(name, "1")
    config = one_line_environment(
        "import os; from rollout import Score; "
        f"return Score(reward=1.0, metrics={{name: float(name in os.environ) for name in {removed + kept}}})"
    )
    evaluation = evaluate(config, overrides=in_directory(tmp_path), timeout=TIMEOUT)
    assert evaluation.metrics == {**dict.fromkeys(removed, 0.0), **dict.fromkeys(kept, 1.0)}


def test_the_error_of_rollouts_that_all_failed_is_named(
    one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    config = one_line_environment("raise ValueError('there is no table')")
    with pytest.raises(EvaluationFailed, match=r"exit code 1.*ValueError: there is no table"):
        evaluate(config, overrides=in_directory(tmp_path), timeout=TIMEOUT)


def test_an_unusable_configuration_is_named(repository: Path, tmp_path: Path) -> None:
    config = repository / "configs" / "color_codeword.yaml"
    with pytest.raises(EvaluationFailed, match=r"exit code 2.*tasks.cuont: unknown key"):
        evaluate(config, overrides=in_directory(tmp_path, "tasks.cuont=1"), timeout=TIMEOUT)


def test_the_end_of_the_output_is_shown_if_there_is_no_report(
    one_line_environment: Callable[[str], str], tmp_path: Path
) -> None:
    config = one_line_environment("import os, sys; sys.stderr.write('out of luck\\n'); os.kill(os.getpid(), 9)")
    with pytest.raises(EvaluationFailed, match=r"exit code -9.\nThe end of its output is:\n(.*\n)*  out of luck"):
        evaluate(config, overrides=in_directory(tmp_path), timeout=TIMEOUT)


def test_an_evaluation_that_takes_too_long_is_stopped(
    sleeping: str, tmp_path: Path, marked: MarkedProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.trainer.evaluation._STOP_TIMEOUT", 0.5)
    with pytest.raises(EvaluationFailed, match=r"did not end within 3 s. Raise `timeout`"):
        evaluate(sleeping, overrides=in_directory(tmp_path), timeout=3.0)
    assert marked.pids() == []


@contextmanager
def killing(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Kill the process at the end, so that a test that fails does not wait for it."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_evaluation_ends_with_the_process_that_called_it(
    sleeping: str, tmp_path: Path, marked: MarkedProcesses, signum: signal.Signals
) -> None:
    # A shell that starts the tests in the background lets its children ignore SIGINT.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from rollout.trainer import evaluate; evaluate({sleeping!r}, overrides={in_directory(tmp_path)})"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as caller, killing(caller):
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "started").exists():
            assert caller.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(caller.pid, signum)
        caller.wait(TIMEOUT)
    marked.wait_until_gone(TIMEOUT)
