"""Plays a configuration once with the current policy, between two steps of a trainer.

    evaluation = evaluate("codeword.yaml", overrides=[f'engine.urls=["{engine}"]', "tasks.seed=1000", "tasks.count=32"])
    print(evaluation.reward)

`rollout run` plays the rollouts in a process of its own. So the trainer's process imports nothing that plays.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rollout.reaper import ReaperProcess
from rollout.trainer.errors import EvaluationFailed

_STOP_TIMEOUT = 10.0
"""How many seconds `rollout run` has to end after SIGTERM before it is killed."""
_OUTPUT_LINES = 20
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "TORCH_NCCL_", "GROUP_", "ROLE_")
_LAUNCHER_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NCCL_ASYNC_ERROR_HANDLING"}
)
"""What `torchrun` sets for a rank. An environment that uses torch must not join the ranks of the trainer."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        rollouts: the number of rollouts that ended.
        failed: the number of these rollouts that have no score.
        reward: the mean of the rewards. Rollouts without a score do not count.
        rewards: the mean of each named reward, by name.
        metrics: the mean of each metric of the scores, by name.
        seconds: how many seconds the rollouts took.
        run_directory: the directory of the run. `rollout inspect` shows its rollouts.
    """

    rollouts: int
    failed: int
    reward: float
    rewards: Mapping[str, float]
    metrics: Mapping[str, float]
    seconds: float
    run_directory: Path


def evaluate(config: Path | str, *, overrides: Sequence[str] = (), timeout: float = 3600.0) -> Evaluation:
    """Play all rollouts of a configuration once with `rollout run`, and return the mean rewards.

    This call blocks. If several ranks train, only one of them calls it, and the others wait in their next step. The
    engines of the configuration sample with the weights that they have, so publish the newest version before.

    Args:
        config: the YAML file.
        overrides: `KEY=VALUE` strings that change keys of the file, such as `engine.urls` and `tasks.seed`.
        timeout: how many seconds the evaluation may take.

    Raises:
        EvaluationFailed: the run failed, no rollout has a score, or the time is over.
    """
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "rollout", "run", str(config), "--json", *settings]
    # Files, and not pipes, because a process that an environment left behind would keep a pipe open.
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as output:
        with _running(command, report.fileno(), output.fileno()) as process:
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise EvaluationFailed(
                    f"the evaluation of {config} did not end within {timeout:g} s. Raise `timeout`, or play fewer "
                    f"rollouts (tasks.count, tasks.group_size).{_last_lines(_content(output.fileno()))}"
                ) from None
        return _evaluation(config, code, _content(report.fileno()), _content(output.fileno()))


@contextmanager
def _running(command: Sequence[str], stdout: int, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own session. It ends with this block, and it is killed if this process is killed."""
    reaper = ReaperProcess()
    try:
        process = subprocess.Popen(  # noqa: S603 - the command is `rollout run`
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=_without_launcher(os.environ),
            start_new_session=True,
        )
        try:
            reaper.add_group(process.pid)
            yield process
        finally:
            _stop(process)
        reaper.remove_group(process.pid)
    finally:
        reaper.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _without_launcher(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIXES)
    }


def _evaluation(config: Path | str, code: int, report_json: bytes, output: bytes) -> Evaluation:
    report: dict[str, Any] = {}
    with suppress(orjson.JSONDecodeError):  # a process that was killed printed no report
        report = orjson.loads(report_json)
    if code != 0 or report.get("reward_mean") is None:
        raise EvaluationFailed(
            f"the evaluation of {config} ended with exit code {code}.{_reason(report) or _last_lines(output)}"
        )
    return Evaluation(
        rollouts=report["rollouts"],
        failed=report["rollouts"] - report["status"].get("ok", 0),
        reward=report["reward_mean"],
        rewards=report["rewards"],
        metrics=report["metrics"],
        seconds=report["seconds"],
        run_directory=Path(report["run_dir"]),
    )


def _reason(report: Mapping[str, Any]) -> str:
    """Return what the report says about the failure, as sentences after a space."""
    if "error" in report:
        return f" {report['error']}"
    if report.get("errors"):
        error = report["errors"][0]
        return f" {error['rollouts']} of its rollouts had this error: {error['type']}: {error['message']}"
    if violations := report.get("trainer", {}).get("violations"):
        return f" {violations} checks of the traces failed; `rollout inspect {report['run_dir']}` shows them."
    return ""


def _content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _last_lines(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()[-_OUTPUT_LINES:]
    return "\nThe end of its output is:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
