"""The coding CLIs codex and opencode: their configuration, and the command that plays a task without a screen.

Each gets a home of its own and an empty working directory with one picture, so it neither reads nor writes the user's
settings. The packages of npm bring native programs, which need no node; `.ci/agents` installs them.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.needs.agents.programs import tools

PICTURE = "picture.png"
"""The file in the working directory that the CLIs can look at."""

_PACKAGES = Path(__file__).resolve().parents[3] / ".agents-node" / "node_modules"
_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_TRIPLE = f"{platform.machine()}-unknown-linux-musl"
CODEX = _PACKAGES / "@openai" / f"codex-linux-{_MACHINE}" / "vendor" / _TRIPLE / "bin" / "codex"
OPENCODE = _PACKAGES / f"opencode-linux-{_MACHINE}" / "bin" / "opencode"


@dataclass(frozen=True)
class Command:
    """How to start a program.

    Attributes:
        arguments: the program and its arguments.
        environ: variables that it gets beside PATH and those of the endpoint.
        directory: its working directory.
    """

    arguments: list[str]
    environ: Mapping[str, str]
    directory: Path


def _make_work(home: Path) -> Path:
    work = home / "work"
    work.mkdir(parents=True)
    (work / PICTURE).write_bytes(tools.picture("square"))
    return work


def codex(home: Path, base_url: str, model: str, task: str) -> Command:
    """Write codex's `config.toml`, and return the command. It reads the key from OPENAI_API_KEY.

    Args:
        home: a directory that does not exist yet.
        base_url: the endpoint's; it ends in `/v1`.
        model: the name of the model.
        task: what to do.
    """
    work, settings = _make_work(home), home / "codex"
    settings.mkdir()
    (settings / "config.toml").write_text(
        f"""\
model = {json.dumps(model)}
model_provider = "rollout"
model_context_window = 32768
check_for_update_on_startup = false
web_search = "disabled"

[model_providers.rollout]
name = "rollout"
base_url = {json.dumps(base_url)}
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = false
request_max_retries = 2
stream_max_retries = 2

[analytics]
enabled = false

[feedback]
enabled = false

[otel]
exporter = "none"

[history]
persistence = "none"
"""
    )
    options = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--color=never"]
    environ = {"CODEX_HOME": str(settings), "HOME": str(home)}
    return Command([str(CODEX), *options, task], environ, work)


def opencode(home: Path, base_url: str, model: str, task: str) -> Command:
    """Write opencode's `opencode.json`, and return the command. It reads the key from OPENAI_API_KEY.

    Args:
        home: a directory that does not exist yet.
        base_url: the endpoint's; it ends in `/v1`.
        model: the name of the model.
        task: what to do.
    """
    work, settings = _make_work(home), home / ".config" / "opencode"
    settings.mkdir(parents=True)
    modalities = {"input": ["text", "image"], "output": ["text"]}
    about = {"name": model, "tool_call": True, "reasoning": True, "attachment": True, "modalities": modalities}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "rollout",
        "options": {"baseURL": base_url, "apiKey": "{env:OPENAI_API_KEY}"},
        "models": {model: {**about, "limit": {"context": 32768, "output": 8192}}},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "share": "disabled",
        "enabled_providers": ["rollout"],
        "provider": {"rollout": provider},
        "model": f"rollout/{model}",
        "small_model": f"rollout/{model}",
        "permission": {"*": "allow"},
    }
    (settings / "opencode.json").write_text(json.dumps(config))
    environ = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".data"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_STATE_HOME": str(home / ".state"),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    }
    return Command([str(OPENCODE), "run", "--model", f"rollout/{model}", task], environ, work)
