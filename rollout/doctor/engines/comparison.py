"""Compares our prompts of conversations with those of a server."""

from collections.abc import Sequence
from dataclasses import dataclass

from renderers_adapter.errors import AdapterError
from rollout.doctor.engines.conversations import Conversation
from rollout.doctor.engines.known_differences import KnownDifference, explain_bridged, explain_rendered, join_tokens
from rollout.doctor.engines.own_prompts import OwnPrompts, OwnRenderer
from rollout.records.messages import MessageError


@dataclass(frozen=True, slots=True)
class ServerPrompt:
    """A prompt that a server made.

    Attributes:
        conversation: the conversation.
        ids: the tokens that the server makes of it.
    """

    conversation: Conversation
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that is not known.

    Attributes:
        server_prompt: the conversation and its prompt by the server.
        own_ids: our prompt.
        is_bridged: whether our prompt was bridged.
    """

    server_prompt: ServerPrompt
    own_ids: list[int]
    is_bridged: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result for several conversations.

    Attributes:
        equal: the number of conversations whose prompts are equal, apart from known differences.
        bridged: the number of these conversations whose bridged prompts are equal, too.
        known: the known differences, and the names of the conversations that have each.
        differences: the other differences.
        unsupported: for each conversation that our renderer does not support its name, and the reason.
    """

    equal: int
    bridged: int
    known: dict[KnownDifference, list[str]]
    differences: list[Difference]
    unsupported: dict[str, str]


async def compare_prompts(renderer: OwnRenderer, server_prompts: Sequence[ServerPrompt]) -> Comparison:
    """Compare our prompts, rendered and bridged, with those of a server."""
    equal = bridged = 0
    known: dict[KnownDifference, list[str]] = {}
    differences: list[Difference] = []
    unsupported: dict[str, str] = {}
    for server_prompt in server_prompts:
        conversation = server_prompt.conversation
        try:
            own = await renderer.make_prompts(conversation)
        except (AdapterError, MessageError) as error:
            unsupported[conversation.name] = str(error)
            continue
        found = await _explain(renderer, server_prompt, own)
        if isinstance(found, Difference):
            differences.append(found)
            continue
        for difference in sorted(found):
            known.setdefault(difference, []).append(conversation.name)
        equal += 1
        bridged += own.bridged is not None
    return Comparison(equal, bridged, known, differences, unsupported)


async def _explain(
    renderer: OwnRenderer, server_prompt: ServerPrompt, own: OwnPrompts
) -> set[KnownDifference] | Difference:
    """Return the known differences of a conversation, or the first difference that is not known."""
    conversation = server_prompt.conversation
    known: set[KnownDifference] = set()
    if (rendered_ids := join_tokens(own.rendered)) != server_prompt.ids:
        in_rendered = await explain_rendered(renderer, conversation, own.rendered, server_prompt.ids)
        if in_rendered is None:
            return Difference(server_prompt, rendered_ids, is_bridged=False)
        known |= in_rendered
    if own.bridged is not None and (bridged_ids := join_tokens(own.bridged)) != rendered_ids:
        in_bridged = explain_bridged(renderer, conversation, own.rendered, own.bridged)
        if in_bridged is None:
            return Difference(server_prompt, bridged_ids, is_bridged=True)
        known |= in_bridged
    return known
