"""Turns the errors of a session about a request into refusals that name the place in the program's request."""

import re

from renderers_adapter.errors import AdapterError
from rollout.config.sampling import SamplingError
from rollout.engine.errors import RequestRefusedLocally
from rollout.gateway.dialects.base import Dialect, RequestRefused, TurnRequest
from rollout.records.messages import MessageError

REFUSED_ERRORS = (AdapterError, MessageError, SamplingError, RequestRefusedLocally)
"""Errors that are the request's own fault."""
_MESSAGE_PLACE = re.compile(r"messages\[(\d+)\](?:\.content\[(\d+)\])?|\bmessage (\d+)\b")


def refusal_of(error: Exception, dialect: Dialect, request: TurnRequest | None) -> RequestRefused:
    """Return a refusal that names the place in the program's request instead of the place in our conversation."""
    places: list[str] = []

    def name_place(match: re.Match[str]) -> str:
        index, part = int(match[1] or match[3]), match[2]
        if request is None or index >= len(request.places):
            return match[0]
        places.append(request.places[index] if part is None else dialect.part_place(request, index, int(part)))
        return places[-1]

    text = _MESSAGE_PLACE.sub(name_place, str(error))
    return RequestRefused(text, parameter=places[0] if places else None)
