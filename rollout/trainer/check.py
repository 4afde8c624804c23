"""Checks a trajectory against the invariants of the design; any consumer can run it.

    for violation in check(trajectory):
        print(violation.invariant, violation.where, violation.detail)

Everything is proven from the records alone: what the engine saw is named by the digests that each step carries.
Findings come in the order of the turns, so the first of them is where it went wrong. A turn that builds on a faulty one
is not blamed for what it inherited.

    1 prefix     a path's tokens are the engine's prompt and completion, sampled tokens with their log-probs
    2 images     a path has its own images and no others, in order and with multiplicity, each with its descriptor
    3 places     each placeholder lies exactly on its image's pad tokens
    4 raw        a descriptor carries no pixels
    5 once       nothing crosses the queue twice
    6 branches   nodes form a tree, branches share what is the same, and every sampled token trains exactly once
    11 aligned   whatever goes with tokens covers them exactly, and no image is cut
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from renderers_adapter.descriptors import parse_raw_mm_item, reject_processed
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import Expanded, LogicalIds, PlaceholderError, TokenRun, expand, extend
from rollout.records.evidence import DIGEST_BYTES, NO_LOGPROB, answer_digest, ids_digest, images_digest
from rollout.records.messages import ROLES
from rollout.records.wire import Step
from rollout.trainer.batches.samples import TrainingSample, samples
from rollout.trainer.trajectory import ROOT, Trajectory, TrajectoryNode

_ROUNDING = 1e-3
"""A log-prob of a certain token may come out a little above zero."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant (its number in the design) that does not hold, and where."""

    invariant: int
    rollout: str
    where: str
    detail: str


Finding = tuple[int, str, str]


def check(trajectory: Trajectory) -> list[Violation]:
    """Every violation that can be seen from a trajectory's records; none for a sound one."""
    if trajectory.started is None:
        return []
    found = [*_tree(trajectory)]
    if not found:
        found = [*_turns(trajectory)]
    if not found:
        found = [*_branches(trajectory)]
    return [Violation(number, trajectory.rollout, where, detail) for number, where, detail in found]


def check_sample(sample: TrainingSample) -> list[Violation]:
    """3 and 11: whether a sample, truncated or not, is aligned, and whether its images are whole and on their pads."""
    where = f"sample of node {sample.leaf}"
    return [Violation(number, sample.rollout, where, detail) for number, detail in _alignment(sample)]


def _tree(trajectory: Trajectory) -> Iterator[Finding]:
    """6: each step brings the nodes after those before it, and each node hangs from one that was there already."""
    count = 0
    for at, step in enumerate(trajectory.steps):
        where, parent = f"turn {step.turn}", step.parent
        nodes = trajectory.nodes[count : count + len(step.nodes)]
        if step.first != count or len(nodes) != len(step.nodes) or not nodes:
            yield 6, where, f"its {len(step.nodes)} nodes begin at {step.first}, after {count} that came before"
            return
        for node in nodes:
            if (node.index, node.parent, node.step) != (count, parent, at) or not ROOT <= parent < count:
                told = f"node {node.index} below {node.parent}, of step {node.step}"
                yield 6, f"{where}, node {count}", f"it is {told}; expected node {count} below {parent}, of step {at}"
                return
            parent, count = count, count + 1
    if count != len(trajectory.nodes):
        yield 6, f"node {count}", "no turn brought it"


def _turns(trajectory: Trajectory) -> Iterator[Finding]:
    paths = _Paths(trajectory)
    faulty: set[int] = set()
    introduced: dict[str, int] = {}
    recorded: set[int] = set()
    for step in trajectory.steps:
        findings = [(5, "", "this turn was recorded already")] if step.turn in recorded else list[Finding]()
        recorded.add(step.turn)
        findings += [*_nodes(trajectory, step), *_images(trajectory, step, introduced)]
        inherits = any(node.index in faulty for node in trajectory.path(step.parent))
        if not findings and not inherits:
            findings += _prompt(paths, step)
        findings += _evidence(trajectory, step)
        if findings or inherits:
            faulty.update(range(step.first, step.leaf + 1))
        for number, where, detail in findings:
            yield number, f"turn {step.turn}{where}", detail


def _nodes(trajectory: Trajectory, step: Step) -> Iterator[Finding]:
    """1, 2 and 3 of the nodes that a turn added, each by itself."""
    for node in trajectory.nodes[step.first : step.leaf + 1]:
        where, role = f", node {node.index}", node.message.get("role")
        if role not in ROLES:
            yield 11, where, f"its words are of the role {role!r}; expected one of {', '.join(ROLES)}"
        elif node.sampled and role != "assistant":
            yield 1, where, f"it was sampled, and its role is {role!r}"
        ends = [at for span in node.content for at in span]
        if ends != sorted(ends) or any(not 0 <= at <= len(node.run.ids) for at in ends):
            yield 11, where, f"its words lie at {node.content}, which are not places in its {len(node.run.ids)} tokens"
        if node.sampled != (node.index == step.leaf):
            yield 1, where, "it was sampled, and is not the turn's answer" if node.sampled else "nothing was sampled"
        named = [part["hash"] for part in _parts(node) if "hash" in part]
        if named != [slot.hash for slot in node.run.images]:
            yield 2, where, f"its message has the images {named}, its tokens {[slot.hash for slot in node.run.images]}"
        try:
            expand([node.run], pad_id=trajectory.pad_id)
        except PlaceholderError as error:
            yield 3, where, str(error)
        except AdapterError as error:
            yield 1, where, str(error)


def _images(trajectory: Trajectory, step: Step, introduced: dict[str, int]) -> Iterator[Finding]:
    """2, 4 and 5 of the descriptors that a turn brought, and of the images that it needs."""
    nodes = trajectory.nodes[step.first : step.leaf + 1]
    needed = {slot.hash for node in nodes for slot in node.run.images}
    for mm_hash, item in step.images.items():
        if mm_hash in introduced:
            yield 5, f", image {mm_hash}", f"its descriptor was sent in turn {introduced[mm_hash]} already"
        elif mm_hash not in needed:
            yield 5, f", image {mm_hash}", "its descriptor was sent, and no message of this turn needs it"
        introduced.setdefault(mm_hash, step.turn)
        if mm_hash not in trajectory.images:
            continue
        try:
            reject_processed(item)
            source = parse_raw_mm_item(trajectory.images[mm_hash]).raw_image_id
        except AdapterError as error:
            yield 4, f", image {mm_hash}", str(error)
        else:
            if source is not None and not source.startswith(mm_hash):
                yield 2, f", image {mm_hash}", f"its descriptor names another image, {source}"
    for node in nodes:
        for slot in node.run.images:
            if slot.hash not in introduced or slot.hash not in trajectory.images:
                yield 2, f", node {node.index}", f"no descriptor of the image {slot.hash} came with it or before it"


class _Paths:
    """The expanded path of one node after another; mostly the next one extends the last."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory
        self._leaf, self._last = ROOT, expand([], pad_id=None)

    def to(self, leaf: int) -> Expanded:
        path = self._trajectory.path(leaf)
        known = next((at + 1 for at in reversed(range(len(path))) if path[at].index == self._leaf), 0)
        base = self._last if known else expand([], pad_id=None)
        added = expand([node.run for node in path[known:]], pad_id=self._trajectory.pad_id)
        self._leaf, self._last = leaf, extend(base, added)
        return self._last

    def prompt(self, step: Step) -> Expanded:
        """Everything before what this turn sampled."""
        answer = self._trajectory.nodes[step.leaf]
        opening = TokenRun(LogicalIds(answer.run.ids[: answer.run.sampled_from]), answer.run.sampled_from)
        return extend(self.to(answer.parent), expand([opening], pad_id=self._trajectory.pad_id))


def _prompt(paths: _Paths, step: Step) -> Iterator[Finding]:
    """1 and 2: the path, joined and expanded, is the prompt that the engine saw, with all of its images."""
    prompt = paths.prompt(step)
    hashes = [mark.hash for mark in prompt.placeholders]
    half = DIGEST_BYTES // 2
    seen_ids, seen_images = step.prompt_digest[:half], step.prompt_digest[half:]
    if len(step.prompt_digest) != DIGEST_BYTES:
        yield 1, "", f"the engine's prompt has a digest of {len(step.prompt_digest)} bytes; expected {DIGEST_BYTES}"
    elif images_digest(hashes) != seen_images:
        yield 2, "", f"the images of its path, {hashes[:4]}, are not those of the engine's prompt, or not in its order"
    elif len(prompt.ids) != step.prompt_length:
        yield 1, "", f"the path has {len(prompt.ids)} tokens, the engine's prompt had {step.prompt_length}"
    elif ids_digest(prompt.ids) != seen_ids:
        yield 1, "", "the path's tokens are not those of the engine's prompt"


def _evidence(trajectory: Trajectory, step: Step) -> Iterator[Finding]:
    """1 and 11: what goes with the sampled tokens is of exactly these, and can be what it says it is."""
    run, where = trajectory.nodes[step.leaf].run, f", node {step.leaf}"
    answer = LogicalIds(run.ids[run.sampled_from :])
    if not np.isfinite(run.logprobs).all() or (run.logprobs > _ROUNDING).any() or (run.logprobs == NO_LOGPROB).any():
        yield 1, where, "a log-prob is not finite, is above zero, or stands for none"
    elif step.answer_digest and answer_digest(answer, run.logprobs) != step.answer_digest:
        yield 1, where, "the sampled tokens or their log-probs are not those of the engine's answer"
    ends = [0, *(span.end for span in step.versions)]
    starts = [*(span.start for span in step.versions), len(answer)]
    if step.versions and (ends != starts or ends != sorted(ends)):
        yield 1, where, "the weight versions do not cover the sampled tokens"
    mask, experts, end = step.sampling_mask, step.routed_experts, step.prompt_length + len(answer) - 1
    if mask is not None and (len(mask.lengths) != len(answer) or int(mask.lengths.sum()) != len(mask.ids)):
        yield 11, where, f"the sampling mask is of {len(mask.lengths)} tokens, {len(answer)} were sampled"
    if experts is not None and not 0 <= experts.first <= experts.first + len(experts.rows) == end:
        rows = f"{experts.first} to {experts.first + len(experts.rows)}"
        yield 11, where, f"the routed experts are of the tokens {rows}; expected up to {end}"


def _branches(trajectory: Trajectory) -> Iterator[Finding]:
    """6 and 11: what is shared is there once and trains once, and each branch has its own path's images."""
    yield from _doubled(trajectory)
    trained: dict[int, int] = {}
    for sample in samples(trajectory):
        where = f"sample of node {sample.leaf}"
        yield from ((number, where, detail) for number, detail in _alignment(sample))
        path = trajectory.path(sample.leaf)
        own = [slot.hash for node in path for slot in node.run.images]
        if [mark.hash for mark in sample.placeholders] != own:
            yield 6, where, "its images are not its own path's"
        starts = expand([node.run for node in path], pad_id=trajectory.pad_id).starts
        for node, start, end in zip(path, starts[:-1], starts[1:], strict=True):
            masked = int(sample.mask[start:end].sum())
            if masked and masked != (len(node.run.ids) - node.run.sampled_from if node.sampled else 0):
                yield 6, where, f"it trains {masked} tokens of node {node.index}, which are not what was sampled there"
            trained[node.index] = trained.get(node.index, 0) + (masked > 0)
    for node in trajectory.nodes:
        if trajectory.trainable and node.sampled and trained.get(node.index, 0) != 1:
            yield 6, f"node {node.index}", f"it trains in {trained.get(node.index, 0)} samples; expected one"


def _doubled(trajectory: Trajectory) -> Iterator[Finding]:
    """6: two context messages that are the same to the policy, at the same place, must be one node."""
    known: dict[tuple[int, str, bytes, str], int] = {}
    for node in trajectory.nodes:
        if node.sampled:
            continue
        tools = str(trajectory.steps[node.step].tools) if node.parent == ROOT else ""
        first = known.setdefault((node.parent, str(node.message), node.run.ids.tobytes(), tools), node.index)
        if first != node.index:
            yield 6, f"node {node.index}", f"it is node {first} once more: same place, same message, same tokens"


def _alignment(sample: TrainingSample) -> Iterator[tuple[int, str]]:
    """3 and 11 of one sample."""
    length = len(sample.token_ids)
    aligned = (sample.mask, sample.logprobs, sample.token_types, sample.version_index, sample.content)
    if {len(values) for values in aligned} != {length}:
        yield 11, f"its arrays have the lengths {[len(values) for values in aligned]} for {length} tokens"
        return
    if len(sample.images) != len(sample.placeholders):
        yield 11, f"it has {len(sample.images)} descriptors for {len(sample.placeholders)} placeholders"
    covered = np.zeros(length, np.uint8)
    for mark in sample.placeholders:
        if mark.offset + mark.length > length:
            yield 11, f"the image {mark.hash} at {mark.offset} is cut: {mark.length} tokens, {length} in the sample"
        covered[mark.offset : mark.offset + mark.length] += 1
    if not np.array_equal(covered, sample.token_types):
        at = int(np.flatnonzero(covered != sample.token_types)[0])
        yield 3, f"its placeholders do not lie exactly on image tokens; the first difference is at {at}"


def _parts(node: TrajectoryNode) -> list[dict[str, str]]:
    content = node.message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list | tuple) else []
