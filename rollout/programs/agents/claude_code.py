"""Claude Code, the coding agent of Anthropic for the command line. It speaks Messages."""

from rollout.programs.agents.base import Agent, AgentCall, AgentCommand

DIRECTORY = "claude"
"""The directory of its settings and sessions, in the home."""

# IS_SANDBOX lets root skip the permissions. The time-outs are long because an answer is generated whole.
_ENVIRON = {
    "IS_SANDBOX": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "API_TIMEOUT_MS": "3600000",
    "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "3600000",
}


def _prepare(call: AgentCall) -> AgentCommand:
    return AgentCommand(
        arguments=("--print", "--dangerously-skip-permissions", f"--model={call.model}"),
        environ={
            **_ENVIRON,
            "CLAUDE_CONFIG_DIR": str(call.home / DIRECTORY),
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(call.context_tokens),
        },
        stdin=call.prompt,
    )


CLAUDE_CODE = Agent(
    name="claude-code",
    executable="claude",
    install="npm install --global @anthropic-ai/claude-code",
    tried_versions=("2.1.197",),
    prepare=_prepare,
    notes=(
        "It was tried by hand; the tests do not have it.",
        "It does not compact a conversation below 100,000 tokens, so give engines a longer context.",
    ),
)
"""Claude Code, as `rollout` starts it."""
