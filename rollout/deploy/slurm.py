"""Writes a plan as batch scripts for Slurm: one job for the launch, and a job array of workers for each environment.

The script `submit.sh` submits the jobs in the right order. It passes its arguments to `sbatch`, such as the partition,
the account and the time limit. If a job is preempted, Slurm starts it again with the same number (`--requeue`). Then
the launch continues its run, or the worker joins the run again.
"""

import shlex
from collections.abc import Sequence

from rollout.deploy.plan import Plan, WorkerGroup

_SUBMIT_SCRIPT = "submit.sh"


def render(plan: Plan) -> dict[str, str]:
    """Return the contents of all files, by file name."""
    scripts = {"launch.sbatch": _launch_script(plan)}
    scripts |= {_workers_file_name(group): _workers_script(plan, group) for group in plan.worker_groups}
    return scripts | {_SUBMIT_SCRIPT: _submit_script(plan)}


def _launch_script(plan: Plan) -> str:
    grace = max(group.grace_seconds for group in plan.worker_groups)
    command = ["rollout", "launch", *(str(group.config_path) for group in plan.worker_groups), "--workers", "0"]
    comment = (
        "# Sends the orders of the run. The workers are separate jobs. This job ends when all rollouts have ended."
    )
    return _script(f"{plan.name}-launch", plan.memory_mb, grace, [], comment, command, plan)


def _workers_script(plan: Plan, group: WorkerGroup) -> str:
    array_options = [f"#SBATCH --array=0-{group.worker_count - 1}"]
    comment = "# One worker. It exits when the run ends. After SIGTERM, it finishes the rollouts that it began."
    return _script(
        f"{plan.name}-{group.name}",
        group.memory_mb,
        group.grace_seconds,
        array_options,
        comment,
        ["rollout", "worker", str(group.config_path)],
        plan,
    )


def _script(
    job_name: str,
    memory_mb: int,
    grace_seconds: int,
    extra_options: Sequence[str],
    comment: str,
    command: Sequence[str],
    plan: Plan,
) -> str:
    override_options = [argument for override in plan.overrides for argument in ("--set", override)]
    # The script uses `exec` to replace the shell, so that SIGTERM reaches the process itself.
    command_line = shlex.join([*command, "--run", str(plan.run_directory), *override_options])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"#SBATCH --job-name={job_name}",
            *extra_options,
            "#SBATCH --ntasks=1",
            "#SBATCH --cpus-per-task=1",
            f"#SBATCH --mem={memory_mb}M",
            f"#SBATCH --signal=B:TERM@{grace_seconds}",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            f"#SBATCH --output=%x-{'%A_%a' if extra_options else '%j'}.log",
            comment,
            "set -euo pipefail",
            f"exec {command_line}",
            "",
        ]
    )


def _submit_script(plan: Plan) -> str:
    submit_lines = [
        f'sbatch --dependency="after:${{launch%%;*}}" "$@" {shlex.quote(_workers_file_name(group))}'
        for group in plan.worker_groups
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Submits the run {plan.name}. sbatch gets the arguments, for example: ./{_SUBMIT_SCRIPT} "
            "--partition=cpu --time=12:00:00",
            "# If some rollouts are not done after the run has ended, run this script again to play them.",
            "set -euo pipefail",
            'cd "$(dirname "$0")"',
            'launch=$(sbatch --parsable "$@" launch.sbatch)',
            *submit_lines,
            "",
        ]
    )


def _workers_file_name(group: WorkerGroup) -> str:
    return f"workers-{group.name}.sbatch"
