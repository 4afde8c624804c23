"""Checks before a run that this machine has what a program needs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rollout.environments.program_errors import ProgramMissing
from rollout.environments.program_scoring import ScoreFunction
from rollout.environments.program_settings import PROGRAM_SCORES_ITSELF, ProgramSettings, ScoreCommand
from rollout.programs.agents.base import Agent
from rollout.programs.cgroups import describe_limits
from rollout.programs.placeholders import TASK_PREFIX
from rollout.programs.sandboxes.base import Sandbox
from rollout.programs.sandboxes.registry import open_sandbox

_VERSION_TIMEOUT = 20.0


def check_program(settings: ProgramSettings) -> str:
    """Find the program, its template and its sandbox, and return what was found.

    Raises:
        ProgramMissing: the program, or a directory of the settings, is not here.
        SandboxMissing: the sandbox cannot be used here.
        ScoreFunctionUnusable: the function that scores cannot be imported or called.
    """
    if sys.platform != "linux":
        raise ProgramMissing(
            "environment.class: Program runs programs on Linux alone, because only there all their processes can be "
            "found and ended. Use Linux, or write an environment with model.endpoint()."
        )
    load_score_function(settings)
    sandbox = open_sandbox(settings.sandbox)
    found_sandbox = sandbox.check()
    agent = settings.known_agent
    if agent is not None:
        found_program = _find_agent(agent, settings, sandbox)
    else:
        found_program = _find_command(settings.command[0], "environment.command", settings, sandbox)
    templates = {"environment.template": settings.template}
    if isinstance(settings.score, ScoreCommand):
        _find_command(settings.score.command[0], "environment.score.command", settings, sandbox)
        templates["environment.score.template"] = settings.score.template
    for key, template in templates.items():
        if template is not None and not _depends_on_task(template):
            _require_directory(key, template, settings)
    return "; ".join([found_program, found_sandbox, describe_limits()])


def load_score_function(settings: ProgramSettings) -> ScoreFunction | None:
    """Return the function that scores; None if something else scores. Raises ScoreFunctionUnusable."""
    if isinstance(settings.score, ScoreCommand) or settings.score == PROGRAM_SCORES_ITSELF:
        return None
    assert settings.config_dir is not None
    return ScoreFunction.load(settings.score, settings.config_dir)


def _depends_on_task(text: str) -> bool:
    return f"{{{TASK_PREFIX}" in text


def _fill(text: str, settings: ProgramSettings) -> str:
    return text.replace("{python}", sys.executable).replace("{config_dir}", str(settings.config_dir))


def _require_directory(key: str, text: str, settings: ProgramSettings) -> None:
    assert settings.config_dir is not None
    directory = settings.config_dir / _fill(text, settings)
    if not directory.is_dir():
        raise ProgramMissing(f"{key}: {directory} is not a directory. Correct the path, or create the directory.")


def _find_command(text: str, key: str, settings: ProgramSettings, sandbox: Sandbox) -> str:
    """Return what was found of the first word of a command. A path in the work directory can not be checked."""
    name = _fill(text, settings)
    if _depends_on_task(text) or ("/" in name and not Path(name).is_absolute()) or "{" in name:
        return f"{text} (not checked, because it depends on the task)"
    path = sandbox.find_program(name)
    if path is None:
        raise ProgramMissing(
            f"{key}: the program {name} was not found, or is not executable. Install it, write its absolute path, or "
            "correct PATH."
        )
    return path


def _find_agent(agent: Agent, settings: ProgramSettings, sandbox: Sandbox) -> str:
    name = agent.executable if settings.executable is None else _fill(settings.executable, settings)
    path = sandbox.find_program(name)
    if path is None:
        raise ProgramMissing(
            f"environment.agent: {name} was not found, or is not executable. Install it: {agent.install}. Or set "
            "environment.executable to its path."
        )
    tried = f"tried with {', '.join(agent.tried_versions)}"
    return f"{path}{_version(path, agent)} ({tried})"


def _version(path: str, agent: Agent) -> str:
    """Return the version that the agent prints; empty if it prints none, or runs only inside of the sandbox."""
    if not agent.version_arguments:
        return ""
    with TemporaryDirectory(ignore_cleanup_errors=True) as home:
        try:
            answered = subprocess.run(  # noqa: S603 - the program of the configuration
                [path, *agent.version_arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_VERSION_TIMEOUT,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": home},
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
    version = re.search(r"\d+(\.\d+)+", answered.stdout.decode("utf-8", "replace"))
    return f" {version[0]}" if answered.returncode == 0 and version else ""
