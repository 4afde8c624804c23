"""Codex, the coding agent of OpenAI for the command line. It speaks Responses."""

import json

from rollout.programs.agents.base import Agent, AgentCall, AgentCommand

DIRECTORY = "codex"
"""The directory of its settings and sessions, in the home."""

_OPTIONS = (
    "--strict-config",
    "--skip-git-repo-check",
    # Its own sandbox would stand inside of the sandbox of the program.
    "--dangerously-bypass-approvals-and-sandbox",
    "--color=never",
)
# An answer is generated whole, and the comments that come before it do not count for the time-out of an idle stream.
_CONFIG = """\
model = {model}
model_provider = "rollout"
model_context_window = {context_tokens}
check_for_update_on_startup = false
web_search = "disabled"

[model_providers.rollout]
name = "rollout"
base_url = {base_url}
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = false
request_max_retries = 2
stream_max_retries = 2
stream_idle_timeout_ms = 3600000

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


def _prepare(call: AgentCall) -> AgentCommand:
    config = _CONFIG.format(
        model=_quote(call.model), base_url=_quote(call.base_url), context_tokens=call.context_tokens
    )
    return AgentCommand(
        arguments=("exec", *_OPTIONS),
        environ={"CODEX_HOME": str(call.home / DIRECTORY)},
        files={f"{DIRECTORY}/config.toml": config},
        last_arguments=("-",),
        stdin=call.prompt,
    )


def _quote(text: str) -> str:
    """Return a basic string of TOML. JSON escapes all that TOML demands, but for the character DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


CODEX = Agent(
    name="codex",
    executable="codex",
    install="npm install --global @openai/codex",
    tried_versions=("0.171.0",),
    prepare=_prepare,
    notes=(
        "A cut answer ends it with an error, so set engine.sampling.max_tokens high enough.",
        "Its tool exec_command writes random ids into its results, so the rollouts of a group differ there.",
    ),
)
"""Codex, as `rollout` starts it."""
