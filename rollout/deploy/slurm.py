"""A plan as batch scripts for Slurm: one job that feeds, an array of workers for each environment.

`submit.sh` submits them in the right order. Slurm starts a preempted job anew under the same number (`--requeue`): the
launch goes on with its run, a worker joins it again. What differs between sites (partition, account, time limit) is for
the arguments of `submit.sh`, which go to `sbatch`.
"""

import shlex
from collections.abc import Sequence

from rollout.deploy.plan import Crew, Plan

_SUBMIT = "submit.sh"


def render(plan: Plan) -> dict[str, str]:
    """The files, by their names."""
    rendered = {"launch.sbatch": _launch(plan)}
    rendered |= {_workers_file(crew): _workers(plan, crew) for crew in plan.crews}
    return rendered | {_SUBMIT: _submit(plan)}


def _launch(plan: Plan) -> str:
    grace = max(crew.grace for crew in plan.crews)
    command = ["rollout", "launch", *(str(crew.file) for crew in plan.crews), "--workers", "0"]
    about = "# Feeds the run and watches it; its workers are jobs of their own. It ends when every rollout has ended."
    return _script(f"{plan.name}-launch", plan.memory_mb, grace, [], about, command, plan)


def _workers(plan: Plan, crew: Crew) -> str:
    array = [f"#SBATCH --array=0-{crew.workers - 1}"]
    about = "# One worker. It joins the run, and ends with it; SIGTERM lets it finish what it began."
    return _script(
        f"{plan.name}-{crew.name}",
        crew.memory_mb,
        crew.grace,
        array,
        about,
        ["rollout", "worker", str(crew.file)],
        plan,
    )


def _script(
    job: str, memory_mb: int, grace: int, more: Sequence[str], about: str, command: Sequence[str], plan: Plan
) -> str:
    told = [part for override in plan.overrides for part in ("--set", override)]
    # So that the signal reaches the process itself, the shell becomes it.
    whole = shlex.join([*command, "--run", str(plan.directory), *told])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"#SBATCH --job-name={job}",
            *more,
            "#SBATCH --ntasks=1",
            "#SBATCH --cpus-per-task=1",
            f"#SBATCH --mem={memory_mb}M",
            f"#SBATCH --signal=B:TERM@{grace}",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            f"#SBATCH --output=%x-{'%A_%a' if more else '%j'}.log",
            about,
            "set -euo pipefail",
            f"exec {whole}",
            "",
        ]
    )


def _submit(plan: Plan) -> str:
    arrays = [
        f'sbatch --dependency="after:${{launch%%;*}}" "$@" {shlex.quote(_workers_file(crew))}' for crew in plan.crews
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Submits the run {plan.name}. Arguments go to sbatch: ./{_SUBMIT} --partition=cpu --time=12:00:00",
            "# Submitted again after it has ended, it goes on with what is not done.",
            "set -euo pipefail",
            'cd "$(dirname "$0")"',
            'launch=$(sbatch --parsable "$@" launch.sbatch)',
            *arrays,
            "",
        ]
    )


def _workers_file(crew: Crew) -> str:
    return f"workers-{crew.name}.sbatch"
