"""One trajectory as a conversation for people, with the tokens, the mask and the images of each message."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rollout.records.messages import Message
from rollout.trainer import Trajectory, TrajectoryNode, check
from rollout.trainer.trajectory import ROOT

_SHOWN_URI_LENGTH = 48


def conversation_lines(trajectory: Trajectory) -> Iterator[str]:
    """Yield lines of text; what several branches share is shown with the first of them."""
    started = trajectory.started
    yield f"{trajectory.identity}  attempt {trajectory.attempt}  {_describe_end(trajectory)}"
    if started is not None:
        yield f"task {json.dumps(dict(started.task), ensure_ascii=False, default=str)}"
        yield f"policy {started.policy_version}  model {started.model}  images in {started.assets or 'the messages'}"
    shown: set[int] = set()
    for leaf in trajectory.leaves():
        path = trajectory.path(leaf)
        new_nodes = [node for node in path if node.index not in shown]
        if shown:
            yield ""
            parent = new_nodes[0].parent
            yield f"--- branch: {'a new root' if parent == ROOT else f'goes on from #{parent}'}"
        for node in new_nodes:
            yield ""
            yield from _message_lines(trajectory, node)
            shown.add(node.index)
    for violation in check(trajectory) if trajectory.error is None else ():
        yield f"! invariant {violation.invariant}, {violation.where}: {violation.detail}"


def _describe_end(trajectory: Trajectory) -> str:
    parts = [trajectory.status.value]
    if trajectory.reward is not None:
        parts.append(f"reward {trajectory.reward:g}")
    parts += [f"{name} {value:g}" for name, value in trajectory.metrics.items()]
    if trajectory.error:
        parts.append(f"{trajectory.error.get('type')}: {trajectory.error.get('message')}")
    return "  ".join(parts)


def _message_lines(trajectory: Trajectory, node: TrajectoryNode) -> Iterator[str]:
    run = node.run
    expanded = len(run.ids) + sum(slot.length - 1 for slot in run.images)
    facts = [f"{expanded} tokens"]
    if run.images:
        facts.append(f"{len(run.ids)} before expansion")
    if node.sampled:
        spans = trajectory.steps[node.step].versions
        versions = ", ".join(dict.fromkeys(span.version for span in spans)) or "unknown"
        facts += [
            f"sampled {run.sampled_from}:{len(run.ids)}",
            f"mean logprob {float(np.mean(run.logprobs)):.3f}",
            f"version {versions}",
            trajectory.steps[node.step].finish_reason,
        ]
    yield f"#{node.index} {node.message.get('role')}  [{', '.join(facts)}]"
    for text in _message_texts(node.message):
        yield from (f"    {line}" for line in text.splitlines() or [""])
    for slot in run.images:
        source = _describe_image(trajectory.images.get(slot.hash))
        yield f"    image {slot.hash} at {slot.offset}, {slot.length} tokens: {source}"


def _message_texts(message: Message) -> Iterator[str]:
    if message.get("reasoning_content"):
        yield f"(thinks) {message['reasoning_content']}"
    content = message.get("content", "")
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
        elif part.get("type") == "image":
            yield f"<image {part.get('hash')}>"
        else:
            yield str(part.get("text", part.get("thinking", "")))
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        yield f"(calls) {function.get('name')}({json.dumps(function.get('arguments'), ensure_ascii=False)})"


def _describe_image(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return "no descriptor"
    source = str(item.get("raw_image_id") or item.get("raw_uri"))
    return (
        source if len(source) <= 2 * _SHOWN_URI_LENGTH else f"{source[:_SHOWN_URI_LENGTH]}… ({len(source)} characters)"
    )
