"""The reasons why a turn cannot be bridged."""

from enum import StrEnum

from renderers_adapter.errors import AdapterError


class BridgeRefusalReason(StrEnum):
    """The reason why a turn cannot be bridged, so that the whole conversation must be rendered.

    Attributes:
        ASSISTANT_MESSAGE: the new messages contain an assistant message that the policy did not sample here, or there
            are no new messages.
        THINKING_DROPPED: the template drops earlier reasoning after a new question.
        END_TOKEN: the answer ended on another stop token than the one with which the template closes it.
        EARLIER_TEXT_CHANGED: with the new messages, the checkpoint's template writes earlier text in another way.
        RENDERER_REFUSED: the renderer cannot be sure that a bridge is correct, for example after unfinished reasoning.
    """

    ASSISTANT_MESSAGE = "assistant"
    THINKING_DROPPED = "thinking"
    END_TOKEN = "end_token"  # noqa: S105 - a token of the model, and no password
    EARLIER_TEXT_CHANGED = "earlier_text"
    RENDERER_REFUSED = "refused"


class BridgeRefused(AdapterError):
    """A bridge would give wrong tokens; render the whole conversation instead.

    Attributes:
        reason: the reason why the turn cannot be bridged.
    """

    def __init__(self, reason: BridgeRefusalReason) -> None:
        self.reason = reason
        super().__init__(f"this turn cannot be bridged: {reason}")
