"""The keys of the section `environment` for `rollout.environments.program:Program`."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationInfo,
    model_validator,
)

from rollout.environments.base import EnvironmentSettings
from rollout.paths import PathUnusable, resolve_path
from rollout.programs.agents.base import Agent
from rollout.programs.agents.registry import find_agent
from rollout.programs.file_patterns import check_pattern
from rollout.programs.placeholders import check_placeholders
from rollout.programs.sandboxes.base import SandboxOptions
from rollout.programs.sandboxes.registry import parse_sandbox
from rollout.programs.workspace import VARIABLE, file_name_problem

PLACEHOLDERS = frozenset({"base_url", "anthropic_base_url", "model", "workdir", "home"})
"""The names of the placeholders beside those of the task."""
DIRECTORY_PLACEHOLDERS = frozenset({"config_dir", "python"})
"""The names of the placeholders that name files of this machine: the directory of the YAML file, and Python itself."""
_ALL_PLACEHOLDERS = PLACEHOLDERS | DIRECTORY_PLACEHOLDERS
_PROGRAMS_PER_CORE = 4
_MIN_PROGRAMS = 8


def _check_text(text: str) -> str:
    return check_placeholders(text, _ALL_PLACEHOLDERS)


ProgramText = Annotated[str, AfterValidator(_check_text)]
"""A text in which placeholders are filled."""


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeptFiles(_Keys):
    """Which files of a work directory are kept in the run's directory, without keys."""

    when: Literal["never", "failed", "always"] = "failed"
    """When files are kept. failed: if the rollout failed."""
    files: tuple[Annotated[str, AfterValidator(check_pattern)], ...] = ()
    """The patterns of the files in the work directory, such as `*.log` or `**`. The output is always kept."""
    max_bytes: int = Field(default=16 << 20, ge=0)
    """The limit for the bytes of the files of one rollout."""


class ProcessNumbers(_Keys):
    """How many programs run at the same time."""

    worker: int | None = Field(default=None, ge=1)
    """The limit for one worker. null: worker.concurrency alone counts."""
    machine: int = Field(default_factory=lambda: max(_MIN_PROGRAMS, _PROGRAMS_PER_CORE * (os.cpu_count() or 1)), ge=1)
    """The limit for all workers of this user on one machine. By default four for each core, and at least 8."""


class ProgramLimitKeys(_Keys):
    """What one program, with all its descendants, may use."""

    memory_bytes: int | None = Field(default=4 << 30, ge=1 << 20)
    """The limit for memory, if the machine has cgroups. null: no limit."""
    processes: int | None = Field(default=512, ge=1)
    """The limit for processes and threads, if the machine has cgroups. null: no limit."""
    output_bytes: int = Field(default=16 << 20, ge=1)
    """The limit for what it prints. A program that prints more is ended, and its rollout fails."""


class ScoreCommand(_Keys):
    """A command that scores the work directory. It prints a number, or an object of JSON, in its last line."""

    command: tuple[ProgramText, ...] = Field(min_length=1)
    """The command and its arguments. It runs in the work directory, in the same sandbox, without key and gateway."""
    template: ProgramText | None = None
    """A directory that is copied over the work directory before, such as tests that the program could have changed."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for the command. After them, the rollout fails."""


_SCORE_FORMS = "`package.module:function`, {command: […]}, or program (the program sends its own reward)"
PROGRAM_SCORES_ITSELF = "program"
"""The value of `score` that means: the program sends its reward with `POST …/reward`."""


def _check_score(score: str) -> str:
    module, colon, function = score.partition(":")
    if score != PROGRAM_SCORES_ITSELF and not (colon and module and function):
        raise ValueError(f"expected {_SCORE_FORMS}")
    file = PurePosixPath(module)
    if file.suffix == ".py" or len(file.parts) > 1:
        beside = f", and put {file.stem}.py beside the YAML file" if len(file.parts) > 1 else ""
        raise ValueError(f"expected a module, not the path of a file; write {file.stem}:{function}{beside}")
    return score


def _form_of_score(score: Any) -> str | None:
    """Return the tag of a form, in <…>, because it is no key. Pydantic then validates a list of JSON as a tuple."""
    if isinstance(score, str):
        return "<name>"
    return "<command>" if isinstance(score, Mapping | ScoreCommand) else None


ScoreForm = Annotated[
    Annotated[str, AfterValidator(_check_score), Tag("<name>")] | Annotated[ScoreCommand, Tag("<command>")],
    Discriminator(_form_of_score, custom_error_type="score", custom_error_message=f"expected {_SCORE_FORMS}"),
]


def _check_files(files: Mapping[str, str]) -> Mapping[str, str]:
    for name in files:
        if (problem := file_name_problem(name)) is not None:
            raise ValueError(problem)
    return files


def _check_failures(failures: Any) -> Any:
    is_list = isinstance(failures, list | tuple) and all(type(code) is int and 0 <= code <= 255 for code in failures)
    if not is_list and failures not in ("nonzero", "none"):
        raise ValueError("expected nonzero, none, or a list of exit codes from 0 to 255")
    return failures


def _check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"expected names without `=`, and texts without NUL; {name!r} is not possible")
        if name == VARIABLE:
            raise ValueError(f"{VARIABLE} is set by the worker, which finds the processes of the program by it")
    return env


_AGENT_KEYS = ("prompt", "arguments", "executable", "context_tokens")


def _check_agent(name: str) -> str:
    find_agent(name)
    return name


def _resolve_config_directory(directory: Path | None, info: ValidationInfo) -> Path | None:
    """Return the directory itself, made absolute; without one, that of the YAML file."""
    base = Path(info.context["directory"]) if info.context else Path.cwd()
    try:
        return resolve_path(directory or Path(), base)
    except PathUnusable as error:
        raise ValueError(error.reason) from None


class ProgramSettings(EnvironmentSettings):
    """The keys of the section `environment` for a program: a command or a known agent, and a score."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    command: tuple[ProgramText, ...] = ()
    """The program and its arguments. No shell reads them."""
    agent: Annotated[str, AfterValidator(_check_agent)] | None = None
    """A known agent in place of a command: codex, opencode, mini-swe-agent or claude-code."""
    prompt: ProgramText = "{task.prompt}"
    """What a known agent is asked to do."""
    arguments: tuple[ProgramText, ...] = ()
    """More arguments for a known agent."""
    executable: ProgramText | None = None
    """The path of the executable of a known agent. null: it is found by its name in PATH."""
    context_tokens: int = Field(default=131_072, ge=1)
    """The context that a known agent is told of; engines may have less."""
    stdin: ProgramText = ""
    """The text that the program can read from its standard input."""
    env: Annotated[Mapping[str, ProgramText], AfterValidator(_check_env)] = Field(default_factory=dict)
    """More environment variables. The score command gets them, too."""
    files: Annotated[Mapping[str, ProgramText], AfterValidator(_check_files)] = Field(default_factory=dict)
    """Text files to write into the work directory, by their relative paths."""
    template: ProgramText | None = None
    """A directory whose files are copied into the work directory; a relative path begins at config_dir."""
    config_dir: Annotated[Path | None, AfterValidator(_resolve_config_directory)] = None
    """The directory that {config_dir} stands for. null: that of the YAML file."""
    timeout: float = Field(default=1200.0, gt=0)
    """Seconds for the program; then it is ended."""
    on_timeout: Literal["fail", "score"] = "fail"
    """What a program that was ended at its timeout means. fail: its rollout fails. score: its work is scored, and the
    rollout has the limit time."""
    failures: Annotated[Literal["nonzero", "none"] | tuple[int, ...], BeforeValidator(_check_failures)] = "nonzero"
    """The exit codes with which the rollout fails: all but 0, none, or a list. A program that a signal ended fails
    unless it is none."""
    keep: KeptFiles = KeptFiles()
    """Which files of the work directory are kept in the run's directory."""
    max_processes: ProcessNumbers = Field(default_factory=ProcessNumbers)
    """How many programs run at the same time."""
    limits: ProgramLimitKeys = ProgramLimitKeys()
    """What one program may use."""
    sandbox: Annotated[SerializeAsAny[SandboxOptions], BeforeValidator(parse_sandbox)] = SandboxOptions()
    """Where the program runs: none, bwrap, docker, or {kind: …} with the keys of that sandbox."""
    score: ScoreForm = Field(description=_SCORE_FORMS)
    """What scores: `package.module:function`, {command: […]}, or program, which sends its own reward."""

    @model_validator(mode="after")
    def _check_program(self) -> Self:
        if self.command and self.agent is not None:
            raise ValueError("has both command and agent; leave one out")
        if not self.command and self.agent is None:
            raise ValueError("has neither command nor agent; write command: […], or agent: codex")
        agent_keys = [name for name in _AGENT_KEYS if getattr(self, name) != type(self).model_fields[name].default]
        if self.command and agent_keys:
            raise ValueError(f"{', '.join(agent_keys)}: only for a known agent (the key agent), not for command")
        return self

    @property
    def known_agent(self) -> Agent | None:
        """What is known of the agent; None for a command."""
        return None if self.agent is None else find_agent(self.agent)

    def identity(self) -> dict[str, Any]:
        """See `EnvironmentSettings.identity`."""
        return self.model_dump(mode="json", by_alias=True, exclude={"config_dir", "executable", "max_processes"})
