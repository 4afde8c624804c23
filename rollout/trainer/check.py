"""Checks a trajectory against the invariants of the system.

    for violation in check(trajectory):
        print(violation.invariant, violation.where, violation.detail)

The check needs only the records, because each step has digests of the prompt and the answer that the engine saw.
Violations come in the order of the turns, so the first one shows where the fault began. Turns that continue from a
faulty turn are not reported again for the same fault.

    1 prefix     the tokens up to a turn's answer are those that the engine saw, and sampled tokens have log-probs
    2 images     a prompt has exactly the images of its messages, with their descriptors
    3 positions  each placeholder covers exactly the pad tokens of its image
    4 raw        a descriptor contains no pixels
    5 once       nothing crosses the queue twice
    6 branches   the nodes form a tree, branches share equal nodes, every sampled token trains exactly once, and
                 none in an untrained turn
    8 score      the reward is the weighted sum of the named rewards
    11 aligned   all arrays about tokens have one entry for each token, and no image is cut
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from renderers_adapter.descriptors import parse_raw_mm_item, reject_processed
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import ExpandedPath, LogicalIds, PlaceholderError, TokenRun, expand, extend_path
from rollout.records.bounds import LOGPROB_TOLERANCE
from rollout.records.evidence import PROMPT_DIGEST_BYTES, VLLM_MISSING_LOGPROB, answer_digest, ids_digest, images_digest
from rollout.records.kinds import ROOT, Step
from rollout.records.messages import ROLES
from rollout.trainer.batches.samples import TOKEN_ARRAYS, TrainingSample, samples
from rollout.trainer.trajectory import Trajectory, TrajectoryNode

_REWARD_TOLERANCE = 1e-6
"""The relative error that the sum of the named rewards may have; an environment may compute with 32-bit floats."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold.

    Attributes:
        invariant: the number of the invariant in the list of this module.
        rollout: the id of the rollout.
        where: the turn, node, image or sample that is wrong.
        detail: what is wrong.
    """

    invariant: int
    rollout: str
    where: str
    detail: str


Finding = tuple[int, str, str]


def check(trajectory: Trajectory) -> list[Violation]:
    """Return every violation in a trajectory's records; none if its start record is missing, which the check needs."""
    if trajectory.started is None:
        return []
    findings = [*_check_tree(trajectory)]
    if not findings:
        findings = [*_check_turns(trajectory)]
    if not findings:
        findings = [*_check_bans(trajectory), *_check_branches(trajectory), *_check_score(trajectory)]
    return [Violation(number, trajectory.rollout, where, detail) for number, where, detail in findings]


def check_sample(sample: TrainingSample) -> list[Violation]:
    """Return the violations of the invariants 3 and 11 in a sample; the sample may be truncated."""
    where = f"sample of node {sample.leaf}"
    return [Violation(number, sample.rollout, where, detail) for number, detail in _check_alignment(sample)]


def _check_tree(trajectory: Trajectory) -> Iterator[Finding]:
    """Check invariant 6: a step's nodes come after those of earlier steps, and each node comes after its parent."""
    node_count = 0
    for step_index, step in enumerate(trajectory.steps):
        where, parent = f"turn {step.turn}", step.parent
        nodes = trajectory.nodes[node_count : node_count + len(step.nodes)]
        if step.first != node_count or len(nodes) != len(step.nodes) or not nodes:
            yield 6, where, f"its {len(step.nodes)} nodes begin at index {step.first}; expected index {node_count}"
            return
        for node in nodes:
            if (node.index, node.parent, node.step) != (
                node_count,
                parent,
                step_index,
            ) or not ROOT <= parent < node_count:
                actual = f"node {node.index} with the parent {node.parent} in step {node.step}"
                yield (
                    6,
                    f"{where}, node {node_count}",
                    f"it is {actual}; expected node {node_count} with the parent {parent} in step {step_index}",
                )
                return
            parent, node_count = node_count, node_count + 1
    if node_count != len(trajectory.nodes):
        yield 6, f"node {node_count}", "no turn contains this node"


def _check_turns(trajectory: Trajectory) -> Iterator[Finding]:
    """Check the invariants 1 to 5 and 11 in each turn, as far as they concern single turns."""
    paths = _PathExpander(trajectory)
    faulty_nodes: set[int] = set()
    first_turn_by_image: dict[str, int] = {}
    seen_turns: set[int] = set()
    for step in trajectory.steps:
        findings = [(5, "", "this turn was recorded twice")] if step.turn in seen_turns else list[Finding]()
        seen_turns.add(step.turn)
        findings += [*_check_nodes(trajectory, step), *_check_images(trajectory, step, first_turn_by_image)]
        inherits_fault = step.parent in faulty_nodes
        if not findings and not inherits_fault:
            findings += _check_prompt(paths, step)
        findings += _check_evidence(trajectory, step)
        if findings or inherits_fault:
            faulty_nodes.update(range(step.first, step.leaf + 1))
        for number, where, detail in findings:
            yield number, f"turn {step.turn}{where}", detail


def _check_nodes(trajectory: Trajectory, step: Step) -> Iterator[Finding]:
    """Check the invariants 1, 2, 3 and 11 for each node that a turn added."""
    for node in trajectory.nodes[step.first : step.leaf + 1]:
        where, role = f", node {node.index}", node.message.get("role")
        if role not in ROLES:
            yield 11, where, f"its role is {role!r}; expected one of {', '.join(ROLES)}"
        elif node.sampled and role != "assistant":
            yield 1, where, f"its tokens were sampled, but its role is {role!r}; expected 'assistant'"
        content_offsets = [at for span in node.content for at in span]
        if content_offsets != sorted(content_offsets) or any(
            not 0 <= at <= len(node.run.ids) for at in content_offsets
        ):
            yield (
                11,
                where,
                f"its content ranges {node.content} overlap, or are outside of its {len(node.run.ids)} tokens",
            )
        if node.sampled != (node.index == step.leaf):
            yield (
                1,
                where,
                "it has sampled tokens, but it is not the turn's answer"
                if node.sampled
                else "it is the turn's answer, but it has no sampled tokens",
            )
        message_hashes = [part["hash"] for part in _content_parts(node) if "hash" in part]
        token_hashes = [slot.hash for slot in node.run.images]
        if message_hashes != token_hashes:
            yield (
                2,
                where,
                f"the images of its message are {message_hashes}, but those of its tokens are {token_hashes}",
            )
        try:
            expand([node.run], pad_id=trajectory.pad_id)
        except PlaceholderError as error:
            yield 3, where, str(error)
        except AdapterError as error:
            yield 1, where, str(error)


def _check_images(trajectory: Trajectory, step: Step, first_turn_by_image: dict[str, int]) -> Iterator[Finding]:
    """Check the invariants 2, 4 and 5 for the descriptors that a turn added, and for the images that the turn needs."""
    nodes = trajectory.nodes[step.first : step.leaf + 1]
    needed_hashes = {slot.hash for node in nodes for slot in node.run.images}
    for mm_hash, descriptor in step.images.items():
        if mm_hash in first_turn_by_image:
            yield 5, f", image {mm_hash}", f"its descriptor was already sent in turn {first_turn_by_image[mm_hash]}"
        elif mm_hash not in needed_hashes:
            yield 5, f", image {mm_hash}", "its descriptor was sent, but no new message of this turn has the image"
        first_turn_by_image.setdefault(mm_hash, step.turn)
        if mm_hash not in trajectory.images:
            continue
        try:
            reject_processed(descriptor)
            named_image_id = parse_raw_mm_item(trajectory.images[mm_hash]).raw_image_id
        except AdapterError as error:
            yield 4, f", image {mm_hash}", str(error)
        else:
            if named_image_id is not None and not named_image_id.startswith(mm_hash):
                yield 2, f", image {mm_hash}", f"its descriptor names another image, {named_image_id}"
    for node in nodes:
        for slot in node.run.images:
            if slot.hash not in first_turn_by_image or slot.hash not in trajectory.images:
                yield 2, f", node {node.index}", f"neither this turn nor an earlier one has a descriptor of {slot.hash}"


class _PathExpander:
    """Expands the tokens from the root to a node. It reuses the last result, because most turns extend the last one."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory
        self._last_leaf, self._last_expanded = ROOT, expand([], pad_id=None)

    def expand_to(self, leaf: int) -> ExpandedPath:
        """Return the expanded tokens and the placeholders from the root to this node."""
        path = self._trajectory.path(leaf)
        shared_count = next((at + 1 for at in reversed(range(len(path))) if path[at].index == self._last_leaf), 0)
        shared = self._last_expanded if shared_count else expand([], pad_id=None)
        added = expand([node.run for node in path[shared_count:]], pad_id=self._trajectory.pad_id)
        self._last_leaf, self._last_expanded = leaf, extend_path(shared, added)
        return self._last_expanded

    def expand_prompt(self, step: Step) -> ExpandedPath:
        """Return the expanded tokens and the placeholders that come before the sampled tokens of this turn."""
        answer_node = self._trajectory.nodes[step.leaf]
        generation_prompt = TokenRun(
            LogicalIds(answer_node.run.ids[: answer_node.run.sampled_from]), answer_node.run.sampled_from
        )
        return extend_path(
            self.expand_to(answer_node.parent), expand([generation_prompt], pad_id=self._trajectory.pad_id)
        )


def _check_prompt(paths: _PathExpander, step: Step) -> Iterator[Finding]:
    """Check the invariants 1 and 2: the nodes before the answer have the tokens and images of the engine's prompt."""
    prompt = paths.expand_prompt(step)
    hashes = [placeholder.hash for placeholder in prompt.placeholders]
    half_bytes = PROMPT_DIGEST_BYTES // 2
    engine_ids_digest, engine_images_digest = step.prompt_digest[:half_bytes], step.prompt_digest[half_bytes:]
    if len(step.prompt_digest) != PROMPT_DIGEST_BYTES:
        yield 1, "", f"its prompt digest has {len(step.prompt_digest)} bytes; expected {PROMPT_DIGEST_BYTES}"
    elif images_digest(hashes) != engine_images_digest:
        yield 2, "", f"its recorded images ({hashes[:4]}, in this order) differ from those of the engine's prompt"
    elif len(prompt.ids) != step.prompt_length:
        yield 1, "", f"its recorded prompt has {len(prompt.ids)} tokens, but the engine's had {step.prompt_length}"
    elif ids_digest(prompt.ids) != engine_ids_digest:
        yield 1, "", "the tokens of its recorded prompt differ from those of the engine's prompt"


def _check_evidence(trajectory: Trajectory, step: Step) -> Iterator[Finding]:
    """Check the invariants 1 and 11: the engine's data about the sampled tokens covers all of them and is valid."""
    run, where = trajectory.nodes[step.leaf].run, f", node {step.leaf}"
    sampled_ids = LogicalIds(run.ids[run.sampled_from :])
    if (
        not np.isfinite(run.logprobs).all()
        or (run.logprobs > LOGPROB_TOLERANCE).any()
        or (run.logprobs == VLLM_MISSING_LOGPROB).any()
    ):
        yield 1, where, "a log-prob is not finite, is above zero, or is missing"
    elif np.isin(sampled_ids, step.banned_ids).any():
        yield 1, where, "a banned token was sampled"
    elif step.answer_digest and answer_digest(sampled_ids, run.logprobs) != step.answer_digest:
        yield 1, where, "the sampled tokens or their log-probs differ from those of the engine's answer"
    ends = [0, *(span.end for span in step.versions)]
    starts = [*(span.start for span in step.versions), len(sampled_ids)]
    if step.versions and (ends != starts or ends != sorted(ends)):
        yield 1, where, "the spans of the policy versions do not cover each sampled token exactly once"
    mask, experts, expected_end = step.sampling_mask, step.routed_experts, step.prompt_length + len(sampled_ids) - 1
    if mask is not None and (len(mask.lengths) != len(sampled_ids) or int(mask.lengths.sum()) != len(mask.ids)):
        yield (
            11,
            where,
            f"the sampling mask has {len(mask.lengths)} lengths with the sum {mask.lengths.sum()}, and {len(mask.ids)} "
            f"ids; expected {len(sampled_ids)} lengths, one for each sampled token, and their sum as the number of ids",
        )
    if experts is not None and not 0 <= experts.first <= experts.first + len(experts.rows) == expected_end:
        row_range = f"{experts.first} to {experts.first + len(experts.rows)}"
        yield 11, where, f"the routed experts cover the tokens {row_range}; they must end at token {expected_end}"


def _check_bans(trajectory: Trajectory) -> Iterator[Finding]:
    """Check invariant 11: all turns that ban tokens ban the same ones. A turn bans none if its engine cannot ban."""
    banning_steps = [step for step in trajectory.steps if step.banned_ids]
    for step in banning_steps:
        if step.banned_ids != banning_steps[0].banned_ids:
            where = f"turn {step.turn}, node {step.leaf}"
            yield 11, where, f"its banned_ids differ from those of turn {banning_steps[0].turn}"


def _check_branches(trajectory: Trajectory) -> Iterator[Finding]:
    """Check the invariants 6 and 11: shared nodes exist once and train once, and a branch has only its own images."""
    yield from _check_duplicates(trajectory)
    times_trained: dict[int, int] = {}
    for sample in samples(trajectory):
        where = f"sample of node {sample.leaf}"
        yield from ((number, where, detail) for number, detail in _check_alignment(sample))
        path = trajectory.path(sample.leaf)
        path_hashes = [slot.hash for node in path for slot in node.run.images]
        if [placeholder.hash for placeholder in sample.placeholders] != path_hashes:
            yield 6, where, "its images differ from the images of its branch's messages"
        starts = expand([node.run for node in path], pad_id=trajectory.pad_id).run_starts
        for node, start, end in zip(path, starts[:-1], starts[1:], strict=True):
            yield from (
                (11, f"{where}, node {node.index}", detail) for detail in _check_turn(trajectory, sample, node, end)
            )
            trained_tokens = int(sample.mask[start:end].sum())
            if trained_tokens and trained_tokens != (len(node.run.ids) - node.run.sampled_from if node.sampled else 0):
                yield 6, where, f"it trains {trained_tokens} tokens of node {node.index}; expected all sampled tokens"
            times_trained[node.index] = times_trained.get(node.index, 0) + (trained_tokens > 0)
    untrained_turns = trajectory.untrained_turns | trajectory.unreceived_turns
    for node in trajectory.nodes if trajectory.trainable else ():
        expected = 0 if trajectory.steps[node.step].turn in untrained_turns else 1
        if node.sampled and (times := times_trained.get(node.index, 0)) != expected:
            yield 6, f"node {node.index}", f"it trains in {times} samples; expected {expected}"


def _check_turn(trajectory: Trajectory, sample: TrainingSample, node: TrajectoryNode, end: int) -> Iterator[str]:
    """Check invariant 11: a node's sampled tokens have its turn's number, and the last token has the turn's reward.

    The node's tokens end at the index `end` of the sample.
    """
    if not node.sampled:
        return
    turn = trajectory.steps[node.step].turn
    sampled = slice(end - (len(node.run.ids) - node.run.sampled_from), end)
    rewards = np.zeros(sampled.stop - sampled.start, np.float32)
    rewards[-1] = trajectory.turn_rewards.get(turn, 0.0)
    if (sample.turn_index[sampled] != turn).any():
        yield f"the turn_index of its sampled tokens must be {turn}, the number of their turn"
    if not np.array_equal(sample.token_rewards[sampled], rewards):
        yield f"the token_rewards of its sampled tokens must be {rewards[-1]} at the last token and 0 at the others"


def _check_score(trajectory: Trajectory) -> Iterator[Finding]:
    """Check invariant 8: if there are named rewards, the reward is their weighted sum."""
    parts = [named.value * named.weight for named in trajectory.rewards.values()]
    tolerance = _REWARD_TOLERANCE * math.fsum(map(abs, parts))
    if parts and (trajectory.reward is None or abs(trajectory.reward - math.fsum(parts)) > tolerance):
        names = ", ".join(trajectory.rewards)
        yield 8, "score", f"the reward is {trajectory.reward}, but the weighted sum of {names} is {math.fsum(parts)}"


def _check_duplicates(trajectory: Trajectory) -> Iterator[Finding]:
    """Check invariant 6: no two nodes have the same parent, message and tokens, unless they were sampled."""
    first_seen: dict[tuple[int, str, bytes, str], int] = {}
    for node in trajectory.nodes:
        if node.sampled:
            continue
        tools = str(trajectory.steps[node.step].tools) if node.parent == ROOT else ""
        first_index = first_seen.setdefault((node.parent, str(node.message), node.run.ids.tobytes(), tools), node.index)
        if first_index != node.index:
            yield 6, f"node {node.index}", f"it has the same parent, message and tokens as node {first_index}"


def _check_alignment(sample: TrainingSample) -> Iterator[tuple[int, str]]:
    """Check the invariants 3 and 11: a sample's arrays are equally long, and its images are whole, on image tokens."""
    length = len(sample.token_ids)
    lengths = [len(getattr(sample, name)) for name in TOKEN_ARRAYS]
    if set(lengths) != {length}:
        yield 11, f"its arrays have the lengths {lengths}; expected {length}, one entry for each token"
        return
    if len(sample.images) != len(sample.placeholders):
        yield 11, f"it has {len(sample.images)} descriptors for {len(sample.placeholders)} placeholders"
    if sample.token_rewards[sample.turn_index < 0].any() or not np.isin(sample.turn_index, (-1, *sample.turns)).all():
        yield 11, "a token that was not sampled has a reward, or a token's turn_index is not in turns"
    image_tokens = np.zeros(length, np.uint8)
    for placeholder in sample.placeholders:
        if placeholder.offset + placeholder.length > length:
            end = placeholder.offset + placeholder.length
            yield 11, f"the image {placeholder.hash} is cut: it ends at token {end} of {length}"
        image_tokens[placeholder.offset : placeholder.offset + placeholder.length] += 1
    if not np.array_equal(image_tokens, sample.token_types):
        first_difference = int(np.flatnonzero(image_tokens != sample.token_types)[0])
        yield 3, f"its placeholders must cover exactly the image tokens; the first difference is at {first_difference}"


def _content_parts(node: TrajectoryNode) -> list[dict[str, str]]:
    """Return the parts of a message's content; none if the content is a string or missing."""
    content = node.message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list | tuple) else []
