"""Refuses arguments of other clients that `chat` does not have. The error says what to write instead."""

import difflib
from collections.abc import Iterable

from rollout.config.sampling import SAMPLING_KEYS
from rollout.errors import RolloutError

_ARGUMENTS = ("messages", "tools", "sampling")
_OTHER_NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "response_format": "structured_outputs",
    "guided_json": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_regex": "structured_outputs",
}
"""The names of sampling keys in other clients, and our name for each."""
_ADVICE = {
    "tool_choice": "The policy chooses a tool. Pass only the tools that it may call in this turn, as "
    "chat(messages, tools=[…]), or no tools.",
    "parallel_tool_calls": "An answer may have several calls; Reply.tool_calls contains all of them.",
    "functions": "Write chat(messages, tools=[…]).",
    "function_call": "Write chat(messages, tools=[…]); the policy chooses a tool.",
    "stream": "chat always returns the whole answer.",
    "stream_options": "chat always returns the whole answer.",
    "n": "Call chat several times; the calls may run at the same time, in asyncio.gather(…).",
    "best_of": "Call chat several times; the calls may run at the same time, in asyncio.gather(…).",
    "logprobs": "Leave it out; the log-prob of every sampled token is always recorded for the trainer.",
    "top_logprobs": "Leave it out; the log-prob of every sampled token is always recorded for the trainer.",
    "prompt_logprobs": "Leave it out; the log-prob of every sampled token is always recorded for the trainer.",
    "model": "Set model.name in the YAML.",
    "timeout": "Set engine.timeout and worker.turn_timeout in the YAML.",
    "system": "Write it as the first message: {'role': 'system', 'content': …}.",
    "prompt": "Write it as a message: chat([{'role': 'user', 'content': …}]).",
    "extra_body": "Write chat(messages, sampling={…}).",
    "extra_headers": "Put the API key in an environment variable, and set engine.api_key_env in the YAML to its name.",
}
"""The advice for other arguments of other clients, by the name of the argument."""


class ChatArgumentError(RolloutError):
    """`chat` was called with an argument that it does not have."""


def refuse_arguments(names: Iterable[str]) -> None:
    """Raise ChatArgumentError for the first of these arguments, if there is one."""
    for name in names:
        raise ChatArgumentError(f"model.chat has no argument {name!r}. {_advice(name)}")


def _advice(name: str) -> str:
    """Return what to write instead of this argument."""
    key = _OTHER_NAMES.get(name, name)
    if key in SAMPLING_KEYS:
        return (
            f"Write chat(messages, sampling={{{key!r}: …}}) for one turn, or engine.sampling.{key} in the YAML for all "
            "turns."
        )
    if name in _ADVICE:
        return _ADVICE[name]
    near = difflib.get_close_matches(name, _ARGUMENTS, n=1)
    question = f"Did you mean {near[0]!r}? " if near else ""
    return f"{question}Its arguments are messages, tools=[…] and sampling={{…}}."
