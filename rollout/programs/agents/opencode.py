"""opencode, an open coding agent for the command line. It speaks chat completions."""

import json

from rollout.programs.agents.base import Agent, AgentCall, AgentCommand

DIRECTORY = ".config/opencode"
"""The directory of its settings, in the home."""
MAX_ANSWER_TOKENS = 8192
"""The limit that it sets for the tokens of one answer."""

_ENVIRON = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    # The repository of a task must not choose another model.
    "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
}


def _prepare(call: AgentCall) -> AgentCommand:
    model = f"rollout/{call.model}"
    about = {
        "name": call.model,
        "tool_call": True,
        "reasoning": True,
        "attachment": True,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "limit": {"context": call.context_tokens, "output": min(MAX_ANSWER_TOKENS, call.context_tokens)},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "rollout",
        "options": {"baseURL": call.base_url, "apiKey": "{env:OPENAI_API_KEY}", "timeout": False},
        "models": {call.model: about},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "share": "disabled",
        "enabled_providers": ["rollout"],
        "provider": {"rollout": provider},
        "model": model,
        "small_model": model,
        "permission": {"*": "allow"},
    }
    return AgentCommand(
        arguments=("run", f"--model={model}"),
        environ={**_ENVIRON, "XDG_CONFIG_HOME": str(call.home / ".config")},
        files={
            f"{DIRECTORY}/opencode.json": json.dumps(config, indent=2),
            # At each start, it installs a package of its own into this directory.
            f"{DIRECTORY}/.npmrc": "offline=true\n",
        },
        stdin=call.prompt,
    )


OPENCODE = Agent(
    name="opencode",
    executable="opencode",
    install="npm install --global opencode-ai",
    tried_versions=("1.18.33",),
    prepare=_prepare,
    notes=(
        "It first asks for a title of the session, in an auxiliary conversation that does not train.",
        "It asks again without end if a request is refused because of the context, so give engines a long one.",
    ),
)
"""opencode, as `rollout` starts it."""
