"""Checks before a run that this machine has what a program needs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rollout.environments.program_errors import ProgramMissing
from rollout.environments.program_scoring import ScoreFunction
from rollout.environments.program_settings import (
    DIRECTORY_PLACEHOLDERS,
    PROGRAM_SCORES_ITSELF,
    ProgramSettings,
    ScoreCommand,
)
from rollout.environments.program_texts import SCORE_KEY, missing_path
from rollout.programs.agents.base import Agent
from rollout.programs.cgroups import describe_limits
from rollout.programs.placeholders import placeholder_names
from rollout.programs.sandboxes.base import Sandbox
from rollout.programs.sandboxes.registry import open_sandbox
from rollout.records.wrong_types import show_value

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
    for key, template in _templates(settings):
        if not _depends_on_rollout(template):
            assert settings.config_dir is not None
            require_directory(key, settings.config_dir / _fill(template, settings))
    agent = settings.known_agent
    if agent is not None:
        found_program = _find_agent(agent, settings, sandbox)
        _require_named_paths("environment.arguments", settings.arguments, settings)
    else:
        found_program = _find_command("environment.command", settings.command, settings, sandbox)
    if isinstance(settings.score, ScoreCommand):
        _find_command(SCORE_KEY, settings.score.command, settings, sandbox)
    return "; ".join([found_program, found_sandbox, describe_limits()])


def require_directory(key: str, path: Path) -> Path:
    """Return the path of a template. Raise ProgramMissing if it is no directory; `key` is the key of the template."""
    if not path.is_dir():
        raise ProgramMissing(f"{key}: {path} is not a directory. Correct the path, or create the directory.")
    return path


def load_score_function(settings: ProgramSettings) -> ScoreFunction | None:
    """Return the function that scores; None if something else scores. Raises ScoreFunctionUnusable."""
    if isinstance(settings.score, ScoreCommand) or settings.score == PROGRAM_SCORES_ITSELF:
        return None
    assert settings.config_dir is not None
    return ScoreFunction.load(settings.score, settings.config_dir)


def _templates(settings: ProgramSettings) -> Iterator[tuple[str, str]]:
    """Yield the key of each template, and its text."""
    if settings.template is not None:
        yield "environment.template", settings.template
    if isinstance(settings.score, ScoreCommand) and settings.score.template is not None:
        yield "environment.score.template", settings.score.template


def _depends_on_rollout(text: str) -> bool:
    return bool(placeholder_names(text) - DIRECTORY_PLACEHOLDERS)


def _fill(text: str, settings: ProgramSettings) -> str:
    return text.replace("{python}", sys.executable).replace("{config_dir}", str(settings.config_dir))


def _require_named_paths(key: str, arguments: Iterable[str], settings: ProgramSettings) -> None:
    assert settings.config_dir is not None
    for argument in arguments:
        path = missing_path(argument, settings.config_dir)
        if path is not None:
            raise ProgramMissing(
                f"{key}: there is no file or directory {path}, which {show_value(argument)} names. Correct the path."
            )


def _find_command(key: str, command: Sequence[str], settings: ProgramSettings, sandbox: Sandbox) -> str:
    """Return what was found of the program of a command; check also the paths that its arguments name."""
    text, *arguments = command
    name = _fill(text, settings)
    if len(text.split()) > 1 and not _is_file(name, settings, sandbox):
        raise ProgramMissing(
            f"{key}: the first item is the program alone, and each argument is an item of its own. There is no program "
            f"{show_value(text)}."
        )
    _require_named_paths(key, arguments, settings)
    if _depends_on_rollout(text):
        return f"{text} (not checked, because it depends on the task)"
    if "/" in name and not name.startswith("/"):
        return _find_in_work_directory(key, name, settings)
    if "PATH" in settings.env and "/" not in name:
        return f"{name} (not checked, because environment.env sets PATH)"
    path = sandbox.find_program(name)
    if path is None:
        raise ProgramMissing(f"{key}: {_explain_missing(name, settings)}")
    return path


def _is_file(name: str, settings: ProgramSettings, sandbox: Sandbox) -> bool:
    """Whether a name with spaces is that of a program, as far as this machine knows."""
    assert settings.config_dir is not None
    if name.startswith("/"):
        return sandbox.find_program(name) is not None
    templates = (settings.config_dir / _fill(template, settings) for _, template in _templates(settings))
    return any((template / name).is_file() for template in templates)


def _find_in_work_directory(key: str, name: str, settings: ProgramSettings) -> str:
    """Return what was found of a program whose path begins at the work directory."""
    assert settings.config_dir is not None
    of_score = key == SCORE_KEY
    templates = [text for of_key, text in _templates(settings) if of_score or of_key == "environment.template"]
    if any(map(_depends_on_rollout, templates)):
        return f"{name} (not checked, because the template depends on the task)"
    for template in templates:
        path = settings.config_dir / _fill(template, settings) / name
        if path.is_file():
            if os.access(path, os.X_OK):
                return f"{name} of the template {template}"
            raise ProgramMissing(f"{key}: {_not_executable(path)}")
    if os.path.normpath(name) in map(os.path.normpath, settings.files):
        raise ProgramMissing(
            f"{key}: {name} is written by environment.files, and such files are not executable. Begin with the program "
            f"that reads it, such as [sh, {name}]."
        )
    if of_score and not (settings.config_dir / name).exists():
        return f"{name} (not checked, because the program may write it)"
    raise ProgramMissing(
        f"{key}: a relative path begins at the work directory, and no template has {name}. Write "
        f"{{config_dir}}/{os.path.normpath(name)} for a file in the directory of the YAML file."
    )


def _explain_missing(name: str, settings: ProgramSettings) -> str:
    """Return why a program cannot be started, and what to do."""
    assert settings.config_dir is not None
    places = [name] if "/" in name else [os.path.join(place, name) for place in os.get_exec_path()]
    for place in map(Path, places):
        if place.is_file():
            return _not_executable(place)
    if Path(name).is_dir() and "/" in name:
        return f"{name} is a directory. Write the path of the program in it."
    if "/" in name:
        return f"there is no file {name}. Correct the path, or install the program."
    if (settings.config_dir / name).is_file():
        return f"no directory of PATH has {name}. Write {{config_dir}}/{name} for the file beside the YAML file."
    return f"no directory of PATH has {name}. Install it, write its absolute path, or correct PATH."


def _not_executable(path: Path) -> str:
    return f"{path} is not executable. Run `chmod +x {path}`, or begin with the program that reads it."


def _find_agent(agent: Agent, settings: ProgramSettings, sandbox: Sandbox) -> str:
    tried = f"tried with {', '.join(agent.tried_versions)}"
    if settings.executable is not None:
        path = _find_command("environment.executable", [settings.executable], settings, sandbox)
        if _depends_on_rollout(settings.executable):
            return f"{path} ({tried})"
    elif (found := sandbox.find_program(agent.executable)) is not None:
        path = found
    else:
        problem = _explain_missing(agent.executable, settings).partition(". ")[0]
        raise ProgramMissing(
            f"environment.agent: {problem}. Install it: {agent.install}. Or set environment.executable to its path."
        )
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
