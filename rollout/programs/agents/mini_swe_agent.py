"""mini-swe-agent, a small coding agent with one tool, bash. It speaks chat completions through litellm."""

from rollout.programs.agents.base import Agent, AgentCall, AgentCommand

DIRECTORY = "mini-swe-agent"
"""The directory of its settings and its trajectory, in the home."""

# Without these variables it asks for a model and a key at its first start, and fails because the model has no price. It
# also repeats a refused request ten times, asks for prices over the network, and reads a file .env beside its package.
_ENVIRON = {
    "MSWEA_CONFIGURED": "true",
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_COST_TRACKING": "ignore_errors",
    "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "3",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
}


def _prepare(call: AgentCall) -> AgentCommand:
    directory = call.home / DIRECTORY
    return AgentCommand(
        arguments=(
            "--yolo",
            "--exit-immediately",
            "--cost-limit=0",
            f"--model=openai/{call.model}",
            "--model-class=litellm",
            f"--output={directory / 'trajectory.json'}",
        ),
        environ={**_ENVIRON, "MSWEA_GLOBAL_CONFIG_DIR": str(directory)},
        last_arguments=(f"--task={call.prompt}",),
    )


MINI_SWE_AGENT = Agent(
    name="mini-swe-agent",
    executable="mini",
    install="pip install mini-swe-agent",
    tried_versions=("2.4.6",),
    prepare=_prepare,
    version_arguments=("--help",),  # it has no option for the version alone
    notes=(
        "It ends with the exit code 0 at its limits, too, so only the score says whether it solved the task.",
        "It does not send an answer without a tool call back; after three in a row it ends.",
        "It ends a command after 30 seconds; arguments: [-c, mini.yaml, -c, environment.timeout=300] changes that.",
        "The prompt is one argument, which on Linux has at most 128 KiB.",
    ),
)
"""mini-swe-agent, as `rollout` starts it."""
