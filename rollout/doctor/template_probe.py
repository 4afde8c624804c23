"""Short conversations that a chat template renders to text, so that doctor sees what the template writes.

The words in them are rare, so a word in the text comes from the message that has it.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.checkpoint_template.renderer import load_template
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig
from rollout.errors import error_text

Message = Mapping[str, Any]

TOOL_NAME, ARGUMENT = "find_quagga", "ultramarine"
RESULT, ANSWER, REASONING = "It grazes at noon", "Certainly ochre", "First compare the pigments"
QUESTION: Message = {"role": "user", "content": "Which pigment is it"}
NEXT_QUESTION: Message = {"role": "user", "content": "Is it really so"}
TOOLS: Sequence[Message] = (
    {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": "Finds it.",
            "parameters": {
                "type": "object",
                "properties": {"pigment": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["pigment", "count"],
            },
        },
    },
)
ARGUMENTS: Mapping[str, Any] = {"pigment": ARGUMENT, "count": 3}
TEXT_ANSWER: Message = {"role": "assistant", "content": ANSWER}
REASONED_ANSWER: Message = {**TEXT_ANSWER, "reasoning_content": REASONING}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [  # some templates require ids of nine characters
        {"id": "call00000", "type": "function", "function": {"name": TOOL_NAME, "arguments": ARGUMENTS}}
    ],
}
CALL_RESULT: Message = {"role": "tool", "tool_call_id": "call00000", "name": TOOL_NAME, "content": RESULT}
REASONED_CALL: Message = {**CALL, "reasoning_content": REASONING}
_SYSTEM: Message = {"role": "system", "content": "Be brief"}
_OPENINGS: Sequence[Sequence[Message]] = ((QUESTION,), (_SYSTEM, QUESTION))
"""Some templates require a system message."""

_BEGUN_REASONING = re.compile(r"<think>\s*(?P<end></think>\s*)?\Z")
_REASONING_BLOCK = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)


class TemplateRefused(Exception):
    """A template raised an error; the message is the error's type and text."""


class TemplateProbe:
    """Renders conversations with one template and its configured arguments, always at the same time of the day.

    Attributes:
        template: the template.
        arguments: the arguments of `model.template`.
        opening: the messages of the shortest conversation that the template renders.
    """

    def __init__(self, template: ChatTemplate, arguments: Mapping[str, Any]) -> None:
        self.template = template
        self.arguments = dict(arguments)
        self._now = datetime.now(UTC)
        self.opening: Sequence[Message] = ()

    @classmethod
    def of_model(cls, model: ModelConfig) -> "TemplateProbe":
        """Load the template that a configuration names.

        Raises:
            ChatTemplateError: there is no template, or it cannot be read.
        """
        options = renderer_options(model)
        return cls(load_template(model.path, options), options.template_arguments)

    def open(self) -> str:
        """Find the shortest conversation that the template renders, and return the text of its prompt.

        Raises:
            TemplateRefused: the template raises an error for one question, with and without a system message.
        """
        refusals = []
        for opening in _OPENINGS:
            try:
                prompt = self.text(opening)
            except TemplateRefused as error:
                refusals.append(error)
            else:
                self.opening = opening
                return prompt
        raise refusals[0]

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        *,
        add_generation_prompt: bool = True,
        more_arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateRefused: the template raises an error.
        """
        try:
            return self.template.render(
                [self.template.for_template(message, tools) for message in messages],
                tools,
                {**self.arguments, **(more_arguments or {})},
                add_generation_prompt=add_generation_prompt,
                strftime_now=self._now.strftime,
            )
        except Exception as error:
            raise TemplateRefused(f"{type(error).__name__}: {error_text(error)}") from error

    def answer(
        self, answer: Message, tools: Sequence[Message] | None = None, opening: Sequence[Message] | None = None
    ) -> tuple[str, str] | None:
        """Return the prompt of an opening, and a text that the policy could sample after it for an answer.

        It is what the template writes after the prompt. If the prompt begins reasoning, and the template leaves it out
        of the answer, then the text contains reasoning of ours. Returns None if the template writes the prompt in
        another way when the answer is there.

        Raises:
            TemplateRefused: the template raises an error.
        """
        opening = self.opening if opening is None else opening
        prompt = self.text(opening, tools)
        whole = self.text([*opening, answer], tools, add_generation_prompt=False)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
        begun = _BEGUN_REASONING.search(prompt)
        if begun is None or not whole.startswith(prompt[: begun.start()]):
            return None
        reasoning = "" if begun["end"] else f"{REASONING}\n</think>\n\n"
        return prompt, reasoning + _REASONING_BLOCK.sub("", whole[begun.start() :])
