"""What a renderer of a model can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from renderers_adapter.errors import AdapterError

TEMPLATE_FILE_ARGUMENT = "file"
"""The key of `RendererOptions.template` that names a file; all other keys are arguments of the template."""


class RendererMismatch(AdapterError):
    """A renderer does not fit the model's tokenizer or the configured template arguments."""


class SpecialText(StrEnum):
    """How control tokens in the text of messages are handled.

    Attributes:
        TEXT: they are encoded as text.
        REFUSE: they are an error, but in assistant messages they are encoded as text.
        ALLOW: they are encoded as control tokens, as engines do it.
    """

    TEXT = "text"
    REFUSE = "refuse"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class RendererOptions:
    """What a renderer of a model can be told.

    Attributes:
        template: arguments of the chat template by name, such as `enable_thinking`. With the renderer `template`, the
            key `file` is the path of another template.
        special_text: how control tokens in the text of messages are handled.
        tool_parser: the name of the parser of tool calls; only with the renderer `template`.
        reasoning_parser: the name of the parser of reasoning; only with the renderer `template`.
    """

    template: Mapping[str, Any] = field(default_factory=dict)
    special_text: SpecialText = SpecialText.TEXT
    tool_parser: str | None = None
    reasoning_parser: str | None = None

    @property
    def template_arguments(self) -> dict[str, Any]:
        """The arguments of the chat template, without the path of its file."""
        return {name: value for name, value in self.template.items() if name != TEMPLATE_FILE_ARGUMENT}
