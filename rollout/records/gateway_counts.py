"""Counts what happened in the gateway: turns, echoes, retries, refusals. Makes the report and the line of summaries.

A session has one counter, whose names are those of `GatewayCount`. It goes to the outcome of the rollout, and the
totals of a run are the sums.
"""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from rollout.records.shares import percent

FOREIGN_PREFIX = "foreign: "
"""A name with this prefix counts the foreign echoes of one reason, such as `foreign: message inserted`."""
IGNORED_TOOL_PREFIX = "ignored tools: "
"""A name with this prefix counts the left out tools of one type, such as `ignored tools: web_search`."""
_OTHER_TOOLS = f"{IGNORED_TOOL_PREFIX}others"
_MAX_TOOL_TYPES = 50
"""Programs write the types, so their number and length are limited."""
_MAX_TYPE_CHARS = 64


class GatewayCount(StrEnum):
    """The names in the counter of a session, beside those with a prefix.

    Attributes:
        TURNS: the turns that were played for programs.
        FIRST: the turns whose conversation had no answer yet.
        BRIDGED: the other turns whose prompt was bridged from the sampled tokens.
        EXACT: the turns in which every answer came back as it was sent.
        NORMALISED: the turns in which an answer came back in another form, and was recognised.
        FOREIGN: the turns with an assistant message that the policy did not sample.
        RETRIES: the requests that were sent again and got the same turn.
        REFUSALS: the requests that were refused.
        UNKNOWN_PATHS: the requests with a right key to a path that the gateway does not have.
        UNRECEIVED: the turns whose answers the program did not receive.
        IDLE_ENDPOINTS: the endpoints that were closed without a turn.
    """

    TURNS = "turns"
    FIRST = "first"
    BRIDGED = "bridged"
    EXACT = "exact"
    NORMALISED = "normalised"
    FOREIGN = "foreign"
    RETRIES = "retries"
    REFUSALS = "refusals"
    UNKNOWN_PATHS = "unknown paths"
    UNRECEIVED = "unreceived"
    IDLE_ENDPOINTS = "idle endpoints"


class RequestOutcome(StrEnum):
    """The outcome of one request, for metrics.

    Attributes:
        OK: the policy answered.
        LIMIT: a limit of the rollout was used up, so the program got a last answer of the gateway.
        REFUSED: the program got an error, because its request, its path or its key is wrong.
        FAILED: the infrastructure failed, or our own code did.
        CANCELLED: the program hung up before its answer was ready.
    """

    OK = "ok"
    LIMIT = "limit"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ECHOES = (GatewayCount.EXACT, GatewayCount.NORMALISED, GatewayCount.FOREIGN)


def foreign_count(reason: str) -> str:
    """Return the name that counts the foreign echoes of one reason."""
    return FOREIGN_PREFIX + reason


def add_ignored_tool(counts: Counter[str], tool_type: str, number: int = 1) -> None:
    """Count a tool that was left out; after many different types, the others are counted together."""
    name = IGNORED_TOOL_PREFIX + tool_type[:_MAX_TYPE_CHARS]
    if name not in counts and sum(known.startswith(IGNORED_TOOL_PREFIX) for known in counts) >= _MAX_TOOL_TYPES:
        name = _OTHER_TOOLS
    counts[name] += number


def add_gateway_counts(totals: Counter[str], counts: Mapping[str, int]) -> None:
    """Add the counts of one rollout to the totals."""
    for name, number in counts.items():
        if name.startswith(IGNORED_TOOL_PREFIX):
            add_ignored_tool(totals, name.removeprefix(IGNORED_TOOL_PREFIX), number)
        else:
            totals[name] += number


def report_gateway(counts: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the counts in the form of the option `--json`; None if no rollout used the gateway."""
    if not any(counts.values()):
        return None
    return {
        "turns": counts.get(GatewayCount.TURNS, 0),
        "first": counts.get(GatewayCount.FIRST, 0),
        "bridged": counts.get(GatewayCount.BRIDGED, 0),
        "echoes": {str(echo): counts.get(echo, 0) for echo in _ECHOES},
        "foreign_reasons": _with_prefix(counts, FOREIGN_PREFIX),
        "retries": counts.get(GatewayCount.RETRIES, 0),
        "refusals": counts.get(GatewayCount.REFUSALS, 0),
        "unknown_paths": counts.get(GatewayCount.UNKNOWN_PATHS, 0),
        "unreceived": counts.get(GatewayCount.UNRECEIVED, 0),
        "idle_endpoints": counts.get(GatewayCount.IDLE_ENDPOINTS, 0),
        "ignored_tools": _with_prefix(counts, IGNORED_TOOL_PREFIX),
    }


def summarize_gateway(counts: Mapping[str, int]) -> str | None:
    """Return one line about the counts for summaries; None if no rollout used the gateway."""
    if (report := report_gateway(counts)) is None:
        return None
    turns = report["turns"]
    line = f"{turns:,} turn{'' if turns == 1 else 's'}"
    if (followers := turns - report["first"]) > 0:
        line += f", {percent(report['bridged'], followers)} bridged"
    if echoes := _list_counts(report["echoes"]):
        line += f"; echoes: {echoes}"
        if reasons := ", ".join(f"{reason} {number:,}" for reason, number in report["foreign_reasons"].items()):
            line += f" ({reasons})"
    others = {
        "repeated": report["retries"],
        "refused": report["refusals"],
        "to unknown paths": report["unknown_paths"],
        "not received": report["unreceived"],
        "tools left out": sum(report["ignored_tools"].values()),
        "endpoints without a turn": report["idle_endpoints"],
    }
    return line + "".join(f"; {number:,} {name}" for name, number in others.items() if number)


def _with_prefix(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Return the counts whose names have the prefix, without it; the largest is first."""
    found = {name.removeprefix(prefix): number for name, number in counts.items() if name.startswith(prefix) and number}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _list_counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number)
