"""Defines what is known of an agent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AgentCall:
    """What an agent is started for.

    Attributes:
        prompt: what it is asked to do.
        base_url: the address of the policy for OpenAI's APIs; it ends in `/v1`.
        anthropic_base_url: the address of the policy for Anthropic's API.
        model: the name of the model.
        work: the working directory.
        home: the home.
        context_tokens: the context that the agent is told of.
    """

    prompt: str
    base_url: str
    anthropic_base_url: str
    model: str
    work: Path
    home: Path
    context_tokens: int


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """How an agent is started.

    Attributes:
        arguments: the arguments behind the executable, without those that a user adds.
        environ: variables beside those of the endpoint and the workspace.
        files: the text of each file to write, by its path relative to the home.
        last_arguments: the arguments that come behind those that a user adds, such as the prompt.
        stdin: the text for the standard input.
    """

    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    last_arguments: tuple[str, ...] = ()
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that is known.

    Attributes:
        name: the value of `environment.agent`.
        executable: the name of its executable file.
        install: the command that installs it.
        tried_versions: the versions with which it was tried.
        prepare: returns how it is started.
        version_arguments: the arguments with which it quickly prints its version; empty if it has none.
        notes: what a user should know, one sentence each; `rollout doctor` shows them.
    """

    name: str
    executable: str
    install: str
    tried_versions: tuple[str, ...]
    prepare: Callable[[AgentCall], AgentCommand]
    version_arguments: tuple[str, ...] = ("--version",)
    notes: tuple[str, ...] = ()
