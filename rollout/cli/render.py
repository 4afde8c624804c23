"""`rollout launch --on slurm|k8s --render DIR`: files for a scheduler, and what to do with them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rollout.deploy import kubernetes, slurm
from rollout.deploy.plan import plan_run
from rollout.errors import ConfigurationError


def render_command(
    paths: Sequence[Path], overrides: Sequence[str], *, workers: int, on: str, to: Path | None, image: str | None
) -> int:
    if to is None or on not in ("slurm", "k8s"):
        raise ConfigurationError("rollout launch: --on slurm and --on k8s need --render DIR, and it needs one of them.")
    if workers < 1:
        raise ConfigurationError("rollout launch --render: --workers says how many for each environment, at least 1.")
    if (on == "k8s") != (image is not None):
        raise ConfigurationError("rollout launch: --on k8s needs --image, and nothing else has one.")
    planned = plan_run(to.resolve().name, paths, overrides, workers)
    files = slurm.render(planned) if image is None else kubernetes.render(planned, image)
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (to / name).write_text(text, "utf-8")
            (to / name).chmod(0o755 if text.startswith("#!") else 0o644)
    except OSError as error:
        raise ConfigurationError(f"{to}: cannot be written: {error.strerror}.") from None
    then = f"{to}/submit.sh" if image is None else f"kubectl apply -f {to}/"
    sys.stdout.write(f"the run will lie in {planned.run_directory}\nstart it with: {then}\n")
    return 0
