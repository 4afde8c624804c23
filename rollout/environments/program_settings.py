"""The keys of the section `environment` for `rollout.environments.program:Program`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from rollout.environments.base import EnvironmentSettings
from rollout.paths import PathUnusable, resolve_path
from rollout.programs.agents.base import Agent
from rollout.programs.agents.registry import find_agent
from rollout.programs.placeholders import check_placeholders
from rollout.programs.sandboxes.base import SandboxOptions
from rollout.programs.sandboxes.registry import parse_sandbox

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
    files: tuple[str, ...] = ()
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
