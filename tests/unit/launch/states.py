"""The state of a launch that has just been prepared."""

from collections.abc import Sequence
from pathlib import Path

from rollout.launch.local import LocalPlace
from rollout.launch.state import LaunchState
from rollout.rundir.manifest import create_run


def prepare_launch(
    repository: Path,
    directory: Path,
    *overrides: str,
    names: Sequence[str] = ("color_codeword",),
    workers: int = 0,
    is_resumed: bool = False,
) -> LaunchState:
    """Create a run of these configurations below a directory, and return the state of its launch."""
    configs = [repository / "configs" / f"{name}.yaml" for name in names]
    run, launch_configs = create_run(configs, (f"run.directory={directory}", *overrides))
    return LaunchState(run, launch_configs, workers, LocalPlace(), is_resumed=is_resumed)
