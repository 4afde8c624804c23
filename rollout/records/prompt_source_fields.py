"""Encodes and decodes the source of a step's prompt.

Readers of schemas before 1.06 do not know `PromptSource.END_TOKEN`, and refuse a step with an unknown source. So it is
sent as `refused`, which is also true, with a field of its own that these readers keep in `extra`.
"""

from rollout.records.fields import Wire, pop_optional_field
from rollout.records.kinds import PromptSource, RecordError

_DEFAULT = PromptSource.BRIDGE
"""The source that most prompts have. It is not sent."""


def encode_prompt_source(source: PromptSource) -> Wire:
    """Return the fields of a step that say how its prompt was made; a field that is None is not sent."""
    if source is PromptSource.END_TOKEN:
        return {"source": PromptSource.REFUSED.value, "end_token": True}
    return {"source": source.value if source is not _DEFAULT else None}


def pop_prompt_source(wire: Wire) -> PromptSource:
    """Remove these fields from a step, and return the source.

    Raises:
        RecordError: a field is not valid, or the two fields contradict each other.
        ValueError: the source is unknown.
    """
    name, has_other_end_token = pop_optional_field(wire, "source", str), pop_optional_field(wire, "end_token", bool)
    source = PromptSource(name) if name else _DEFAULT
    if not has_other_end_token:
        return source
    if source is not PromptSource.REFUSED:
        raise RecordError(f"'end_token' is set, but 'source' is {source.value!r}; expected 'refused'.")
    return PromptSource.END_TOKEN
