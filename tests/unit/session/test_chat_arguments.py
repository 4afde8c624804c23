"""Arguments that other clients have and `chat` does not have: the error says what to write instead."""

import pytest

from rollout.session.chat_arguments import ChatArgumentError, refuse_arguments


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tool_choice", "The policy chooses a tool. Pass only the tools"),
        ("temperature", "chat(messages, sampling={'temperature': …}) for one turn, or engine.sampling.temperature"),
        ("stop", "engine.sampling.stop in the YAML"),
        ("max_completion_tokens", "chat(messages, sampling={'max_tokens': …})"),
        ("response_format", "chat(messages, sampling={'structured_outputs': …})"),
        ("stream", "chat always returns the whole answer."),
        ("n", "asyncio.gather(…)"),
        ("logprobs", "is always recorded for the trainer"),
        ("timeout", "engine.timeout and worker.turn_timeout"),
        ("tool", "Did you mean 'tools'? Its arguments are messages"),
        ("anything", "'anything'. Its arguments are messages, tools=[…] and sampling={…}."),
    ],
)
def test_the_error_of_an_unknown_argument_says_what_to_write_instead(name: str, advice: str) -> None:
    with pytest.raises(ChatArgumentError) as refused:
        refuse_arguments([name])
    assert str(refused.value).startswith(f"model.chat has no argument {name!r}. ")
    assert advice in str(refused.value)
