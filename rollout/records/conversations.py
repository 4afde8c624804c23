"""Enums about the conversations of a rollout: how answers came back in later requests, and what kind a root has."""

from enum import StrEnum


class Echo(StrEnum):
    """How the earlier answers came back in the request of a turn.

    A client sends the whole conversation with every request, so earlier answers come back.

    Attributes:
        EXACT: each answer that was recognised is as it was sent.
        NORMALISED: some answers were recognised only in canonical form: the client changed white space in arguments,
            the order of keys, ids, or dropped the reasoning.
        FOREIGN: after the last answer that was recognised, there is an assistant message that the policy did not give
            at this place.
    """

    EXACT = "exact"
    NORMALISED = "normalised"
    FOREIGN = "foreign"


class RootKind(StrEnum):
    """What a conversation of a rollout is for. Its first node, the root, has the kind.

    Attributes:
        MAIN: the conversation works on the task.
        AUXILIARY: the program asks the model for something beside the task, such as a title or a summary.
        SUBAGENT: the conversation works on a part of the task that the main conversation gave to it.
    """

    MAIN = "main"
    AUXILIARY = "auxiliary"
    SUBAGENT = "subagent"
