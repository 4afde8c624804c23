"""Describes how the prompts of turns were made: bridged, or rendered whole for a reason. Makes the line of summaries.

A *later turn* is every turn but the first one of its rollout. Only later turns can be bridged.
"""

from collections.abc import Mapping
from typing import Any

from rollout.records.kinds import PromptSource
from rollout.records.shares import percent

_RENDER_REASONS = {
    PromptSource.FIRST: "first of a rollout",
    PromptSource.NEW_CONVERSATION: "another conversation",
    PromptSource.RETRY: "asked again",
    PromptSource.COMPACTION: "history changed",
    PromptSource.ASSISTANT: "foreign answer",
    PromptSource.THINKING: "reasoning dropped",
    PromptSource.END_TOKEN: "other end token",
    PromptSource.EARLIER_TEXT: "earlier text changed",
    PromptSource.REFUSED: "bridge refused",
}
"""The reasons in the words of the summary and of `rollout inspect`; docs/traces.md explains each reason."""
_LATER_REASONS = tuple(source for source in _RENDER_REASONS if source is not PromptSource.FIRST)


def is_later_render(source: PromptSource) -> bool:
    """Whether the prompt of a later turn was rendered whole."""
    return source in _LATER_REASONS


def describe_prompt(source: PromptSource) -> str:
    """Return how one prompt was made, such as `prompt bridged` or `prompt rendered: history changed`."""
    if source is PromptSource.BRIDGE:
        return "prompt bridged"
    return f"prompt rendered: {_RENDER_REASONS[source]}"


def report_prompts(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the counts, by the values of `PromptSource`, in the form of the option `--json`.

    Only reasons that occurred are there; the most frequent one is first.
    """
    rendered = {str(source): counts[source] for source in _LATER_REASONS if counts.get(source)}
    return {
        "first": counts.get(PromptSource.FIRST, 0),
        "bridged": counts.get(PromptSource.BRIDGE, 0),
        "rendered": dict(sorted(rendered.items(), key=lambda item: -item[1])),
    }


def summarize_prompts(counts: Mapping[str, int]) -> str:
    """Return one line for summaries: the share of later turns that were bridged, and why the others were not."""
    report = report_prompts(counts)
    later = report["bridged"] + sum(report["rendered"].values())
    if not later:
        return "no later turns"
    reasons = ", ".join(
        f"{_RENDER_REASONS[PromptSource(reason)]} {number:,}" for reason, number in report["rendered"].items()
    )
    line = f"{percent(report['bridged'], later)} of {later:,} later turn{'' if later == 1 else 's'} bridged"
    return f"{line} (rendered whole: {reasons})" if reasons else line
