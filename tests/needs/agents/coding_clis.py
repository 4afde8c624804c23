"""The coding CLIs that rollout knows, as `environment.agent` starts them.

Each gets a home of its own and an empty working directory with one picture, so it neither reads nor writes the user's
settings. The packages of npm bring native programs, which need no node; `.ci/agents` installs them.
"""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

from rollout.programs.agents.base import AgentCall
from rollout.programs.agents.registry import find_agent
from rollout.programs.workspace import write_files
from tests.conftest import ROOT
from tests.needs.agents.playing import Command, Endpoint
from tests.needs.agents.programs import tools

WORK = "work"
"""The working directory, in the home that they get."""
PICTURE = "picture.png"
"""The file in the working directory that the CLIs can look at."""
CONTEXT = 131072
"""The context that they are told of; the limits that end a rollout are the gateway's."""

_PACKAGES = ROOT / ".agents-node" / "node_modules"
_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_CODEX_VENDOR = _PACKAGES / f"codex-{_MACHINE}" / "vendor" / f"{platform.machine()}-unknown-linux-musl"
CODEX = _CODEX_VENDOR / "bin" / "codex"
OPENCODE = _PACKAGES / f"opencode-{_MACHINE}" / "bin" / "opencode"
MINI_SWE_AGENT = Path(sys.executable).with_name("mini")


def coding_cli(name: str, executable: Path) -> Callable[[Endpoint, Path, str], Command]:
    """Return how a known agent is started, from the endpoint, a directory that does not exist yet, and the task."""
    agent = find_agent(name)

    def command(endpoint: Endpoint, home: Path, task: str) -> Command:
        work = home / WORK
        work.mkdir(parents=True)
        (work / PICTURE).write_bytes(tools.picture("square"))
        call = AgentCall(
            prompt=task,
            base_url=endpoint.base_url,
            anthropic_base_url=endpoint.base_url.removesuffix("/v1"),
            model=endpoint.model,
            work=work,
            home=home,
            context_tokens=CONTEXT,
        )
        prepared = agent.prepare(call)
        write_files(prepared.files, home)
        arguments = [str(executable), *prepared.arguments, *prepared.last_arguments]
        return Command(arguments, work, {"HOME": str(home), **prepared.environ}, prepared.stdin)

    return command
