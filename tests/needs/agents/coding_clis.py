"""The coding CLIs codex and opencode: their configuration, and the command that plays a task without a screen.

Each gets a home of its own and an empty working directory with one picture, so it neither reads nor writes the user's
settings. The packages of npm bring native programs, which need no node; `.ci/agents` installs them.
"""

import json
import platform
from pathlib import Path

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


def _make_work(home: Path) -> Path:
    work = home / WORK
    work.mkdir(parents=True)
    (work / PICTURE).write_bytes(tools.picture("square"))
    return work


def codex(endpoint: Endpoint, home: Path, task: str) -> Command:
    """Write codex's `config.toml`, and return the command. It reads the key from OPENAI_API_KEY.

    Args:
        endpoint: where it plays.
        home: a directory that does not exist yet.
        task: what to do.
    """
    work, settings = _make_work(home), home / "codex"
    settings.mkdir()
    (settings / "config.toml").write_text(
        f"""\
model = {json.dumps(endpoint.model)}
model_provider = "rollout"
model_context_window = {CONTEXT}
check_for_update_on_startup = false
web_search = "disabled"

[model_providers.rollout]
name = "rollout"
base_url = {json.dumps(endpoint.base_url)}
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = false
request_max_retries = 2
stream_max_retries = 2

[features]
apps = false
plugins = false

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
    options = [
        "exec",
        "--strict-config",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        "--color=never",
    ]
    environ = {"CODEX_HOME": str(settings), "HOME": str(home)}
    return Command([str(CODEX), *options, task], work, environ)


def opencode(endpoint: Endpoint, home: Path, task: str) -> Command:
    """Write opencode's `opencode.json`, and return the command. It reads the key from OPENAI_API_KEY.

    Args:
        endpoint: where it plays.
        home: a directory that does not exist yet.
        task: what to do.
    """
    model, work, settings = endpoint.model, _make_work(home), home / ".config" / "opencode"
    settings.mkdir(parents=True)
    modalities = {"input": ["text", "image"], "output": ["text"]}
    about = {"name": model, "tool_call": True, "reasoning": True, "attachment": True, "modalities": modalities}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "rollout",
        "options": {"baseURL": endpoint.base_url, "apiKey": "{env:OPENAI_API_KEY}"},
        "models": {model: {**about, "limit": {"context": CONTEXT, "output": 8192}}},
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
    return Command([str(OPENCODE), "run", "--model", f"rollout/{model}", task], work, environ)
