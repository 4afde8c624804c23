"""Arguments that other clients have and `chat` does not have: the error says what to write instead."""

import pytest

from rollout.session.chat_arguments import ChatArgumentError, refuse_arguments


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tool_choice", "The policy chooses: give only the tools"),
        ("temperature", "chat(messages, sampling={'temperature': …}) for one turn, or engine.sampling.temperature"),
        ("stop", "engine.sampling.stop in the YAML"),
        ("max_completion_tokens", "chat(messages, sampling={'max_tokens': …})"),
        ("response_format", "chat(messages, sampling={'structured_outputs': …})"),
        ("stream", "chat returns the whole answer."),
        ("n", "asyncio.gather(…)"),
        ("logprobs", "are recorded for the trainer anyway"),
        ("timeout", "engine.timeout and worker.turn_timeout"),
        ("tool", "Did you mean 'tools'? It takes messages"),
        ("anything", "'anything'. It takes messages, tools=[…] and sampling={…}."),
    ],
)
def test_the_error_of_an_unknown_argument_says_what_to_write_instead(name: str, advice: str) -> None:
    with pytest.raises(ChatArgumentError) as refused:
        refuse_arguments([name])
    assert str(refused.value).startswith(f"model.chat takes no argument {name!r}. ")
    assert advice in str(refused.value)
