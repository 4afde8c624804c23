"""Arguments of other clients that `chat` does not have: the error says what to write instead."""

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
"""Names of sampling keys in other clients, and our names."""
_ADVICE = {
    "tool_choice": "The policy chooses: give only the tools that it may call in this turn, chat(messages, tools=[…]), "
    "or none.",
    "parallel_tool_calls": "An answer may have any number of calls; Reply.tool_calls has all of them.",
    "functions": "Write chat(messages, tools=[…]).",
    "function_call": "Write chat(messages, tools=[…]); the policy chooses.",
    "stream": "chat returns the whole answer.",
    "stream_options": "chat returns the whole answer.",
    "n": "Call chat several times; the calls may run at the same time, in asyncio.gather(…).",
    "best_of": "Call chat several times; the calls may run at the same time, in asyncio.gather(…).",
    "logprobs": "The log-probs of every sampled token are recorded for the trainer anyway.",
    "top_logprobs": "The log-probs of every sampled token are recorded for the trainer anyway.",
    "prompt_logprobs": "The log-probs of every sampled token are recorded for the trainer anyway.",
    "model": "The YAML names the model: model.name.",
    "timeout": "The YAML has the time limits: engine.timeout and worker.turn_timeout.",
    "system": "Write it as the first message: {'role': 'system', 'content': …}.",
    "prompt": "Write it as a message: chat([{'role': 'user', 'content': …}]).",
    "extra_body": "Write chat(messages, sampling={…}).",
    "extra_headers": "The YAML has the engine's key: engine.api_key_env.",
}


class ChatArgumentError(RolloutError):
    """A call of `chat` has an argument that `chat` does not have."""


def refuse_arguments(names: Iterable[str]) -> None:
    """Raise ChatArgumentError for the first of these arguments; without any, do nothing."""
    for name in names:
        raise ChatArgumentError(f"model.chat takes no argument {name!r}. {_advice(name)}")


def _advice(name: str) -> str:
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
    return f"{question}It takes messages, tools=[…] and sampling={{…}}."
