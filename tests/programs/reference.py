"""A simple reference model of a rollout: it keeps every conversation whole, and shares nothing between them.

It computes the expected prompt of a turn from its messages and from the conversations that were answered before. It
renders whole prompts with the renderer itself. It compares the records of the rollout with what the engine saw.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from renderers_adapter.special_text import MaskingTokenizer
from rollout.trainer import TrainingSample, Trajectory, TrajectoryNode, check, samples
from tests.programs.engine_double import ObservedTurn

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class AnsweredConversation:
    """A whole conversation up to an answer: its messages as text, and all its tokens."""

    messages: tuple[str, ...]
    turn: ObservedTurn


class ReferenceModel:
    """Computes what turns and records must contain.

    `hashes` maps the URL of each image to its hash. An answer that ends with one of `other_ends` is never bridged,
    because the template closes it with another token.
    """

    def __init__(
        self, renderer: Any, tokenizer: MaskingTokenizer, hashes: Mapping[str, str], other_ends: Sequence[int]
    ) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._hashes = hashes
        self._other_ends = other_ends
        self.answered: list[AnsweredConversation] = []

    def check_turn(self, messages: Sequence[Message], tools: Tools, turn: ObservedTurn, source: str) -> None:
        """Check that a prompt has every image of its messages, and the same tokens as before for a known beginning."""
        images = [hash_ for message in messages for hash_ in self._images(message)]
        assert list(turn.images) == images, "the request does not have exactly the images of its conversation"
        expected = [self._bridge(known, messages, tools) for known in self._longest_prefixes(messages, tools)]
        if source == "bridge":
            assert list(turn.logical) in expected, "the bridge changed what was sampled, or added other tokens"
        else:
            assert not expected or None in expected, "a conversation that could be bridged was rendered again"
            assert list(turn.logical) == self._rendered(messages, tools), (
                "the full render differs from the renderer's own"
            )

    def remember(self, messages: Sequence[Message], tools: Tools, reply: Message, turn: ObservedTurn) -> None:
        """Remember a conversation that was answered."""
        self.answered.append(AnsweredConversation(self._conversation_key([*messages, reply], tools), turn))

    def check_records(self, trajectory: Trajectory, turns: Mapping[int, ObservedTurn]) -> None:
        """Check that the records of a rollout match what the engine saw: nothing is lost, duplicated or changed."""
        assert check(trajectory) == []
        assert sorted(step.turn for step in trajectory.steps) == sorted(turns)
        for step in trajectory.steps:
            turn, path = turns[step.turn], trajectory.path(step.leaf)
            assert joined(path) == list(turn.prompt_and_completion)
            assert expanded(path) == [*turn.expanded, *turn.answer.tokens]
            assert [slot.hash for node in path for slot in node.run.images] == list(turn.images)
        self._require_once(trajectory)
        self._require_samples(trajectory, turns)

    def _require_once(self, trajectory: Trajectory) -> None:
        introduced = [mm_hash for step in trajectory.steps for mm_hash in step.images]
        assert len(introduced) == len(set(introduced)), "the descriptor of an image was sent twice"
        context = [
            (node.parent, tools, json.dumps(node.message, sort_keys=True), node.run.ids.tobytes())
            for node in trajectory.nodes
            if not node.sampled
            for tools in [json.dumps(trajectory.steps[node.step].tools) if node.parent == -1 else ""]
        ]
        assert len(context) == len(set(context)), "a node was sent twice"
        assert sum(node.sampled for node in trajectory.nodes) == len(trajectory.steps)

    def _require_samples(self, trajectory: Trajectory, turns: Mapping[int, ObservedTurn]) -> None:
        trained: dict[int, list[int]] = {}
        by_turn: dict[int, list[int]] = {}
        rewards: dict[int, float] = {}
        leaves = {step.leaf: step.turn for step in trajectory.steps}
        for sample in samples(trajectory):
            turn = turns[leaves[sample.leaf]]
            assert sample.token_ids.tolist() == [*turn.expanded, *turn.answer.tokens]
            assert [mark.hash for mark in sample.placeholders] == list(turn.images)
            assert sample.turns == tuple(sorted(turns))
            for at in np.flatnonzero(sample.mask).tolist():
                number = int(sample.turn_index[at])
                rewards[number] = rewards.get(number, 0.0) + float(sample.token_rewards[at])
                by_turn.setdefault(number, []).append(int(sample.token_ids[at]))
                token = int(sample.token_ids[at])
                trained.setdefault(int(sample.versions[sample.version_index[at]]), []).append(token)
                assert sample.logprobs[at] == np.float32(-0.001 * (token % 997))
            check_truncation(sample)
        assert by_turn == {number: list(seen.answer.tokens) for number, seen in turns.items()}, (
            "a token has the index of another turn"
        )
        assert rewards == trajectory.turn_rewards, "a turn's reward is lost or duplicated"
        assert trained == {number: list(seen.answer.tokens) for number, seen in turns.items()}, (
            "not trained exactly once"
        )

    def _longest_prefixes(
        self, messages: Sequence[Message], tools: Tools
    ) -> list[tuple[AnsweredConversation, Sequence[Message]]]:
        """Return the longest answered conversations that this one begins with, each with the messages after it."""
        texts = self._conversation_key(messages, tools)
        prefixes = [known for known in self.answered if texts[: len(known.messages)] == known.messages]
        most = max((len(known.messages) for known in prefixes), default=0)
        return [(known, messages[most - 1 :]) for known in prefixes if len(known.messages) == most]

    def _bridge(
        self, extension: tuple[AnsweredConversation, Sequence[Message]], messages: Sequence[Message], tools: Tools
    ) -> list[int] | None:
        known, tail = extension
        if not tail or any(message["role"] == "assistant" for message in tail):
            return None
        prompt, completion = list(known.turn.logical), list(known.turn.answer.tokens)
        if completion[-1] in self._other_ends:
            return None
        masked, masked_tools = self._tokenizer.mask((list(tail), tools))
        found = self._renderer.bridge_to_next_turn(
            prompt, completion, masked, tools=masked_tools, process_multimodal=False
        )
        if found is None or found.token_ids[: len(prompt) + len(completion)] != prompt + completion:
            return None
        return list(found.token_ids)

    def _rendered(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        masked, masked_tools = self._tokenizer.mask(([_with_objects(message) for message in messages], tools))
        found = self._renderer.render(masked, tools=masked_tools, add_generation_prompt=True, process_multimodal=False)
        return list(found.token_ids)

    def _images(self, message: Message) -> list[str]:
        content = message.get("content")
        if not isinstance(content, list):
            return []
        return [self._hashes[part["image_url"]["url"]] for part in content if part["type"] == "image_url"]

    def _conversation_key(self, messages: Sequence[Message], tools: Tools) -> tuple[str, ...]:
        """Return the tools and each message as text, with images by hash; equal keys mean equal conversations."""
        comparable = [{**_with_objects(message), "images": self._images(message)} for message in messages]
        for message in comparable:
            if isinstance(message.get("content"), list):
                message["content"] = [part if part["type"] == "text" else "image" for part in message["content"]]
        return (json.dumps(tools), *(json.dumps(message, sort_keys=True) for message in comparable))


def _with_objects(message: Message) -> Message:
    """Return a message with the arguments of its calls as objects, as records and templates have them."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({**call, "function": {**call["function"], "arguments": value}})
    return {**message, "tool_calls": calls}


def joined(path: Sequence[TrajectoryNode]) -> list[int]:
    """Return the tokens of a path, with one pad token for each image."""
    return [token for node in path for token in node.run.ids.tolist()]


def expanded(path: Sequence[TrajectoryNode]) -> list[int]:
    """Return the tokens of a path, with as many pad tokens for each image as the image has tokens."""
    found: list[int] = []
    for node in path:
        lengths = {slot.offset: slot.length for slot in node.run.images}
        for at, token in enumerate(node.run.ids.tolist()):
            found += [token] * lengths.get(at, 1)
    return found


def check_truncation(sample: TrainingSample) -> None:
    """Check that a truncated sample stays aligned and cuts no image in two."""
    length = len(sample.token_ids)
    for limit in {1, length // 3, length // 2, length - 1, *(mark.offset + 1 for mark in sample.placeholders[:2])}:
        cut = sample.truncated(max(1, limit))
        size = len(cut.token_ids)
        aligned = (
            *(cut.mask, cut.logprobs, cut.token_types, cut.version_index),
            *(cut.content, cut.turn_index, cut.token_rewards),
        )
        assert size <= max(1, limit)
        assert {len(values) for values in aligned} == {size}
        assert cut.token_ids.tolist() == sample.token_ids[:size].tolist()
        assert cut.token_rewards.tolist() == sample.token_rewards[:size].tolist()
        kept = [mark for mark in sample.placeholders if mark.offset < size]
        assert list(cut.placeholders) == kept
        assert len(cut.images) == len(kept)
        assert all(mark.offset + mark.length <= size for mark in kept)
        assert int(cut.token_types.sum()) == sum(mark.length for mark in kept)
