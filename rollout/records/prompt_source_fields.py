"""Encodes and decodes the source of a step's prompt.

Readers of schemas before 1.06 refuse a step with a source that they do not know, such as `PromptSource.END_TOKEN`. So
such a source is sent as `refused`, which is also true, with a field of its own that these readers keep in `extra`.
"""

from collections.abc import Mapping

from rollout.records.fields import Wire, pop_optional_field
from rollout.records.kinds import PromptSource, RecordError

_DEFAULT = PromptSource.BRIDGE
"""The source that most prompts have. It is not sent."""
_FIELD_OF_SOURCE: Mapping[PromptSource, str] = {
    PromptSource.END_TOKEN: "end_token",
    PromptSource.EARLIER_TEXT: "earlier_text",
}
"""The fields of sources that are sent as `refused`. `end_token` came with schema 1.06, `earlier_text` with 1.07."""


def encode_prompt_source(source: PromptSource) -> Wire:
    """Return the fields of a step that say how its prompt was made; a field that is None is not sent."""
    if source in _FIELD_OF_SOURCE:
        return {"source": PromptSource.REFUSED.value, _FIELD_OF_SOURCE[source]: True}
    return {"source": source.value if source is not _DEFAULT else None}


def pop_prompt_source(wire: Wire) -> PromptSource:
    """Remove these fields from a step, and return the source.

    Raises:
        RecordError: a field is not valid, or the fields contradict each other.
        ValueError: the source is unknown.
    """
    name = pop_optional_field(wire, "source", str)
    source = PromptSource(name) if name else _DEFAULT
    found = [(special, field) for special, field in _FIELD_OF_SOURCE.items() if pop_optional_field(wire, field, bool)]
    if not found:
        return source
    if source is not PromptSource.REFUSED:
        raise RecordError(f"{found[0][1]!r} is set, but 'source' is {source.value!r}; expected 'refused'.")
    if len(found) > 1:
        raise RecordError(f"{' and '.join(repr(field) for _, field in found)} are set; expected one of them.")
    return found[0][0]
