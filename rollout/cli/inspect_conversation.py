"""Shows one trajectory as a conversation, with the tokens and the images of each message."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from textwrap import indent
from types import MappingProxyType
from typing import Any

import numpy as np

from rollout.cli.inspect_prompts import ChangedText
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import ROOT, Step
from rollout.records.messages import Message
from rollout.records.prompt_counts import describe_prompt
from rollout.trainer import Trajectory, TrajectoryNode, check

_SHOWN_HASH_LENGTH = 12
_NO_TEXTS: Mapping[int, ChangedText] = MappingProxyType({})


def conversation_lines(
    trajectory: Trajectory,
    traceback: str | None,
    *,
    full: bool,
    changed_texts: Mapping[int, ChangedText] = _NO_TEXTS,
) -> Iterator[str]:
    """Yield the lines that show a trajectory. A message in several branches is shown once, with the first of them.

    Args:
        trajectory: the trajectory to show.
        traceback: the traceback of its error, if there is one.
        full: whether to show the schemas of tools and the whole addresses of images.
        changed_texts: the earlier text that the chat template changed, by `Step.turn`.
    """
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
            yield f"--- {'another conversation' if parent == ROOT else f'branch: continues from #{parent}'}"
        for node in new_nodes:
            if node.parent == ROOT:
                if (kind := trajectory.root_kinds.get(node.index)) is not None:
                    yield f"{kind.value} conversation"
                yield from _tool_lines(trajectory.steps[node.step].tools or (), full=full)
            yield ""
            yield from _message_lines(trajectory, node, changed_texts, full=full)
            shown.add(node.index)
    if traceback is not None:
        yield ""
        yield "the error was raised here:"
        yield from indent(traceback.rstrip(), "    ").splitlines()
    elif len(lines := _error_lines(trajectory)) > 1:
        yield ""
        yield "the error in full:"
        yield from (f"    {line}" for line in lines)
    for violation in check(trajectory) if trajectory.error is None else ():
        yield f"! {violation.where}: check {violation.invariant} failed: {violation.detail}"


def _describe_end(trajectory: Trajectory) -> str:
    parts = [trajectory.status.value]
    if trajectory.limit is not RolloutLimit.NONE:
        parts.append(f"limit {trajectory.limit.value}")
    if trajectory.reward is not None:
        parts.append(f"reward {trajectory.reward:g}")
    parts += [f"{name} {reward.value:g} (weight {reward.weight:g})" for name, reward in trajectory.rewards.items()]
    parts += [f"{name} {value:g}" for name, value in trajectory.metrics.items()]
    if lines := _error_lines(trajectory):
        parts.append(f"{lines[0]} …" if len(lines) > 1 else lines[0])
    return "  ".join(parts)


def _error_lines(trajectory: Trajectory) -> list[str]:
    """Return the type and the message of the error that ended a trajectory, as lines; none if it has no error."""
    if not trajectory.error:
        return []
    return f"{trajectory.error.get('type')}: {trajectory.error.get('message')}".rstrip().splitlines()


def _tool_lines(tools: Sequence[Mapping[str, Any]], *, full: bool) -> Iterator[str]:
    """Yield the tools of a conversation: their names, or with `full` their schemas."""
    if not tools:
        return
    schemas = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    if not full:
        yield f"tools {', '.join(_signature(schema) for schema in schemas)}  (--full shows their schemas)"
        return
    for schema in schemas:
        yield f"tool {_signature(schema)}"
        yield from (f"    {line}" for line in json.dumps(schema, ensure_ascii=False, indent=2).splitlines())


def _signature(schema: Mapping[str, Any]) -> str:
    parameters = schema.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return f"{schema.get('name')}({', '.join(properties) if isinstance(properties, Mapping) else ''})"


def _message_lines(
    trajectory: Trajectory, node: TrajectoryNode, changed_texts: Mapping[int, ChangedText], *, full: bool
) -> Iterator[str]:
    run = node.run
    expanded = len(run.ids) + sum(slot.length - 1 for slot in run.images)
    facts = [f"{expanded} tokens"]
    if run.images:
        facts.append(f"{len(run.ids)} before expansion")
    changed = None
    if node.sampled:
        step = trajectory.steps[node.step]
        changed = changed_texts.get(step.turn)
        spans = step.versions
        versions = ", ".join(dict.fromkeys(span.version for span in spans)) or "unknown"
        facts += [
            describe_prompt(step.prompt_source),
            f"sampled {run.sampled_from}:{len(run.ids)}",
            f"mean logprob {float(np.mean(run.logprobs)):.3f}",
            f"version {versions}",
            step.finish_reason,
        ]
        if (reward := trajectory.turn_rewards.get(step.turn)) is not None:
            facts.append(f"reward {reward:g}")
        facts += _turn_marks(trajectory, step)
    yield f"#{node.index} {_describe_role(trajectory, node)}  [{', '.join(facts)}]"
    if changed is not None:
        yield f"    earlier text at turn {changed.turn}: {json.dumps(changed.before, ensure_ascii=False)}"
        yield f"    the same text now:{' ' * (len(str(changed.turn)) + 5)}{json.dumps(changed.now, ensure_ascii=False)}"
    for text in _message_texts(node.message):
        yield from (f"    {line}" for line in text.splitlines() or [""])
    for slot in run.images:
        image = _describe_image(slot.hash, trajectory.images.get(slot.hash), full=full)
        yield f"    image at {slot.offset}, {slot.length} tokens: {image}"


def _turn_marks(trajectory: Trajectory, step: Step) -> Iterator[str]:
    """Yield what the gateway said about a turn, and whether the turn does not train."""
    if step.echo is not None:
        yield f"echo {step.echo.value}"
    if step.constrained:
        yield "constrained"
    if step.turn in trajectory.unreceived_turns:
        yield "not received"
    elif step.turn in trajectory.untrained_turns:
        yield "does not train"


def _describe_role(trajectory: Trajectory, node: TrajectoryNode) -> str:
    """Return the role of a message; for a tool result, also the name of the tool."""
    message = node.message
    if message.get("role") != "tool":
        return str(message.get("role"))
    name = message.get("name") or _called_tool(trajectory, node)
    return "tool result" if name is None else f"tool result of {name}"


def _called_tool(trajectory: Trajectory, node: TrajectoryNode) -> str | None:
    """Return the name of the tool in the call that this result answers; None if no message before it has that call."""
    wanted = node.message.get("tool_call_id")
    while wanted is not None and node.parent != ROOT:
        node = trajectory.nodes[node.parent]
        for call in node.message.get("tool_calls") or ():
            if call.get("id") == wanted:
                return str(call.get("function", {}).get("name"))
    return None


def _message_texts(message: Message) -> Iterator[str]:
    if message.get("reasoning_content"):
        yield f"(thinks) {message['reasoning_content']}"
    calls = message.get("tool_calls") or ()
    content = message.get("content", "")
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            if part or not calls:
                yield part
        elif part.get("type") == "image":
            yield f"<image {part.get('hash')}>"
        else:
            yield str(part.get("text", part.get("thinking", "")))
    for call in calls:
        function = call.get("function", {})
        yield f"(calls) {function.get('name')}({_format_arguments(function.get('arguments'))})"


def _format_arguments(arguments: Any) -> str:
    """Return the arguments of a call in the form NAME=VALUE; if they are no JSON object, do not change them."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return str(arguments)
    if not isinstance(arguments, Mapping):
        return json.dumps(arguments, ensure_ascii=False)
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _describe_image(mm_hash: str, item: Mapping[str, Any] | None, *, full: bool) -> str:
    """Return the file name of an image; for an image in a data: URI, its hash and the URI."""
    shown_hash = mm_hash if full else f"{mm_hash[:_SHOWN_HASH_LENGTH]}…"
    if item is None:
        return f"{shown_hash}, no descriptor"
    if (uri := item.get("raw_uri")) is not None:
        return f"{shown_hash}, {uri}" if full else f"{shown_hash}, a data: URI of {len(uri)} characters"
    file_name = str(item.get("raw_image_id"))
    if full or not file_name.startswith(mm_hash):
        return file_name
    return shown_hash + PurePath(file_name).suffix
