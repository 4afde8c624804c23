"""Compares the answers that a program got with what it sends back, field by field."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.doctor.agent.observed import ObservedTurn, SentCall
from rollout.doctor.agent.raw_answers import RawAnswer, RawCall
from rollout.doctor.agent.script import MARK
from rollout.gateway.dialects.normal_form import parse_arguments

_ORDER = ("text", "reasoning", "arguments", "calls", "ids", "content", "form")


@dataclass(frozen=True, slots=True)
class FieldFinding:
    """What a program did with one field of an answer.

    Attributes:
        name: the field.
        finding: what it did, such as `identical` or `dropped`.
    """

    name: str
    finding: str


def compare_echoes(turns: Sequence[ObservedTurn], answers: Sequence[RawAnswer]) -> set[FieldFinding]:
    """Return what a request did with the fields of the answers that it repeats.

    Args:
        turns: the turns whose answers the request can repeat.
        answers: the assistant's messages in the request.
    """
    findings: set[FieldFinding] = set()
    for turn in turns:
        echoes = [answer for answer in answers if _is_echo(turn, answer)]
        if echoes:
            findings.update(_compare(turn, echoes))
    return findings


def sorted_findings(findings: Iterable[FieldFinding]) -> list[FieldFinding]:
    """Return findings in the order of the report."""
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.name), finding.finding))


def _is_echo(turn: ObservedTurn, answer: RawAnswer) -> bool:
    """Whether a message is an echo of the answer of a turn, or a part of one."""
    if {call.id for call in turn.calls} & {call.id for call in answer.calls}:
        return True
    texts = [*answer.texts, *answer.reasoning.values()]
    return any(mark and any(mark in text for text in texts) for mark in (_mark(turn.text), _mark(turn.reasoning)))


def _mark(text: str) -> str:
    """Return the mark of the script in a text, with its parentheses; empty without one."""
    start = text.find(f"({MARK}")
    return "" if start < 0 else text[start : text.find(")", start) + 1]


def _compare(turn: ObservedTurn, echoes: Sequence[RawAnswer]) -> Iterator[FieldFinding]:
    texts = [text for echo in echoes for text in echo.texts]
    reasoning = {key: text for echo in echoes for key, text in echo.reasoning.items()}
    if len(echoes) > 1:
        yield FieldFinding("form", f"one answer becomes {len(echoes)} messages")
    if any(echo.has_references for echo in echoes):
        yield FieldFinding("form", "items by their ids alone")
    if turn.text:
        yield FieldFinding("text", _compare_text(turn.text, texts))
    elif turn.calls and (empty := next((echo.empty for echo in echoes if echo.calls), "")):
        yield FieldFinding("content", f"{empty} beside calls without a text")
    if turn.reasoning:
        yield FieldFinding("reasoning", _compare_reasoning(turn.reasoning, reasoning, texts))
    yield from _compare_calls(turn.calls, [call for echo in echoes for call in echo.calls])


def _compare_text(sent: str, texts: Sequence[str]) -> str:
    if sent in texts or sent == "".join(texts):
        return "identical"
    if sent.strip() == "".join(texts).strip():
        return "other white space around it"
    if any(sent in text for text in texts):
        return "something added to it"
    return "edited" if any(text.strip() for text in texts) else "dropped"


def _compare_reasoning(sent: str, found: Mapping[str, str], texts: Sequence[str]) -> str:
    for key, text in found.items():
        if text == sent or key.startswith("encrypted"):
            return f"kept ({key})"
    for key, text in found.items():
        if text.strip() == sent.strip():
            return f"kept with other white space ({key})"
    if any(sent in text for text in texts):
        return "moved into the text"
    return "edited" if found else "dropped"


def _compare_calls(sent: Sequence[SentCall], found: Sequence[RawCall]) -> Iterator[FieldFinding]:
    if not sent:
        return
    by_id = {call.id: call for call in found}
    same_ids = all(call.id in by_id for call in sent)
    yield FieldFinding("ids", "kept" if same_ids else "changed")
    if len(found) < len(sent):
        yield FieldFinding("calls", "some dropped")
        return
    pairs = [(call, by_id[call.id]) for call in sent] if same_ids else list(zip(sent, found, strict=False))
    if any(call.name != echo.name and not call.name.endswith(echo.name) for call, echo in pairs):
        yield FieldFinding("calls", "another tool name")
    if same_ids and [call.id for call in sent] != [call.id for call in found]:
        yield FieldFinding("calls", "in another order")
    for call, echo in pairs:
        yield FieldFinding("arguments", _compare_arguments(call, echo.arguments))


def _compare_arguments(call: SentCall, found: Any) -> str:
    if found == call.text:
        return "identical"
    if isinstance(found, str):
        try:
            value = parse_arguments(found)
        except ValueError:
            return "no JSON any more"
    else:
        value = found
    if value != call.arguments:
        return _describe_edit(call.arguments, value)
    changes = []
    if isinstance(found, str) and "\\u" in found:
        changes.append("escapes")
    if list(value) != list(call.arguments):
        changes.append("key order")
    if _number_text(value) != _number_text(call.arguments):
        changes.append("1.0 as 1")
    if not isinstance(found, str):
        return f"an object ({', '.join(changes)})" if changes else "an object, the same keys"
    if _compact(found) != found:
        changes.append("white space")
    return f"written again ({', '.join(changes) or 'other JSON'})"


def _describe_edit(sent: Any, value: Any) -> str:
    if not isinstance(value, Mapping):
        return "edited"
    changed = [key for key in sent if key in value and value[key] != sent[key]]
    added = [str(key) for key in value if key not in sent]
    dropped = [key for key in sent if key not in value]
    parts = (("changed", changed), ("added", added), ("dropped", dropped))
    return "edited: " + "; ".join(f"{', '.join(keys)} {what}" for what, keys in parts if keys)


def _number_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _compact(text: str) -> str:
    return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii="\\u" in text)
