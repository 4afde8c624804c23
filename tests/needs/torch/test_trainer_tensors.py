"""Batches equal those of a slow reference, which writes out whole conversations token by token."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.tokens import ImageSlot, TokenRun, as_logical_ids
from rollout.records.endings import RolloutStatus
from rollout.records.evidence import VersionSpan
from rollout.records.kinds import PromptSource, RecordHeader, RolloutStarted, Step
from rollout.records.messages import ROLES, FinishReason
from rollout.trainer import (
    Group,
    SampleTooLong,
    Trajectory,
    TrajectoryNode,
    batch_of,
    collate,
    rloo,
    samples,
    turn_advantages_of,
)

PAD = 999
VERSIONS = ("3", "4", "5")


@dataclass
class Token:
    """One token of a conversation in the reference."""

    id: int
    trains: bool = False
    logprob: float = 0.0
    image: bool = False
    version: str | None = None
    words_of: int = 0
    turn: int = -1
    reward: float = 0.0


@dataclass
class ExpectedBranch:
    """One branch, from its first message to its last."""

    rollout: str
    reward: float
    tokens: list[Token] = field(default_factory=list)
    images: list[tuple[str, int, int]] = field(default_factory=list)

    def truncate(self, limit: int) -> None:
        """Keep at most `limit` tokens, and nothing from the first image on that would be cut."""
        while self.images and self.images[-1][1] + self.images[-1][2] > limit:
            limit = min(limit, self.images.pop()[1])
        del self.tokens[limit:]


def user_node(draw: st.DrawFn, index: int, parent: int) -> TrajectoryNode:
    ids: list[int] = []
    slots: list[ImageSlot] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            slots.append(ImageSlot(f"{draw(st.integers(0, 3)):032x}", len(ids), draw(st.integers(1, 6))))
            ids.append(PAD)
        else:
            ids.append(draw(st.integers(1, 50)))
    run = TokenRun(as_logical_ids(ids), len(ids), images=tuple(slots))
    words = draw(st.integers(0, len(ids) - 1))
    content = ((words, draw(st.integers(words + 1, len(ids)))),)
    message = {"role": draw(st.sampled_from(ROLES[:2])), "content": ""}
    return TrajectoryNode(message, run, content, index=index, parent=parent, step=-1)


def answer_node(draw: st.DrawFn, index: int, parent: int, step: int) -> TrajectoryNode:
    opening, sampled_length = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    ids = [draw(st.integers(1, 50)) for _ in range(opening + sampled_length)]
    logprobs = np.linspace(-1.0 / (index + 1), -0.1, sampled_length, dtype=np.float32)
    run = TokenRun(as_logical_ids(ids), opening, logprobs)
    return TrajectoryNode({"role": "assistant", "content": ""}, run, (), index=index, parent=parent, step=step)


def step_of(draw: st.DrawFn, turn: int, leaf: int, sampled: int) -> Step:
    """Draw a turn whose tokens were sampled by one version, or by two if the weights changed during it."""
    cut = draw(st.integers(1, sampled))
    spans = [VersionSpan(draw(st.sampled_from(VERSIONS)), 0, cut)]
    spans += [VersionSpan(draw(st.sampled_from(VERSIONS)), cut, sampled)] if cut < sampled else []
    header = RecordHeader("run", "Env", "g", "g.0", 1, leaf)
    return Step(header, turn, -1, leaf, (), {}, PromptSource.FIRST, 0, b"", FinishReason.STOP, versions=tuple(spans))


@st.composite
def trajectories(draw: st.DrawFn, rollout: str = "g.0") -> Trajectory:
    """Draw a rollout whose turns fork from any earlier node, so that branches share nodes.

    The numbers of the turns are not in the order of the steps, some are missing, and some turns have a reward. At least
    one turn trains.
    """
    nodes: list[TrajectoryNode] = []
    steps: list[Step] = []
    for turn in draw(st.lists(st.integers(0, 6), unique=True, min_size=1, max_size=4)):
        parent = draw(st.integers(-1, len(nodes) - 1))
        nodes.append(user_node(draw, len(nodes), parent))
        nodes.append(answer_node(draw, len(nodes), len(nodes) - 1, len(steps)))
        steps.append(step_of(draw, turn, len(nodes) - 1, len(nodes[-1].run.logprobs)))
    hashes = {slot.hash for node in nodes for slot in node.run.images}
    _, *others = draw(st.permutations([step.turn for step in steps]))
    header = RecordHeader("run", "Env", "g", rollout, 1, 0)
    started = RolloutStarted(header, {}, 0, 1, "3", "c", "m", PAD, "/images", {})
    return Trajectory(
        run="run",
        environment="Env",
        group="g",
        rollout=rollout,
        attempt=1,
        status=RolloutStatus.OK,
        reward=draw(st.sampled_from([0.0, 0.5, 1.0])),
        started=started,
        steps=tuple(steps),
        nodes=tuple(nodes),
        images={mm_hash: {"raw_image_id": f"{mm_hash}.png"} for mm_hash in hashes},
        turn_rewards=draw(
            st.dictionaries(st.sampled_from([step.turn for step in steps]), st.sampled_from([-1.0, 0.5]))
        ),
        untrained_turns=frozenset(others[draw(st.integers(0, len(others))) :]),
    )


groups = st.integers(1, 4).flatmap(lambda size: st.tuples(*(trajectories(f"g.{at}") for at in range(size))))


def expected_branches(trajectory: Trajectory) -> list[ExpectedBranch]:
    """Write out every branch up to its last answer that trains; an answer trains only in the first such branch."""
    found: list[ExpectedBranch] = []
    trained: set[int] = set()
    trainable = {
        node.index
        for node in trajectory.nodes
        if node.sampled and trajectory.steps[node.step].turn not in trajectory.untrained_turns
    }
    above = {node.index for leaf in trainable for node in trajectory.path(leaf)[:-1]}
    for leaf in sorted(trainable - above):
        conversation = ExpectedBranch(trajectory.rollout, float(trajectory.reward or 0.0))
        path: list[TrajectoryNode] = []
        at = leaf
        while at >= 0:
            path.insert(0, trajectory.nodes[at])
            at = path[0].parent
        for node in path:
            write_out(conversation, trajectory, node, trains=node.index in trainable - trained)
            trained.add(node.index)
        found.append(conversation)
    return found


def write_out(conversation: ExpectedBranch, trajectory: Trajectory, node: TrajectoryNode, *, trains: bool) -> None:
    slots = {slot.offset: slot for slot in node.run.images}
    role = 1 + ROLES.index(node.message["role"])
    for at, token in enumerate(node.run.ids.tolist()):
        words_of = role if any(first <= at < last for first, last in node.content) else 0
        if at in slots:
            slot = slots[at]
            conversation.images.append((slot.hash, len(conversation.tokens), slot.length))
            conversation.tokens += [Token(PAD, image=True, words_of=words_of)] * slot.length
        elif at < node.run.sampled_from:
            conversation.tokens.append(Token(token, words_of=words_of))
        else:
            sampled_index = at - node.run.sampled_from
            (version,) = [s.version for s in trajectory.steps[node.step].versions if s.start <= sampled_index < s.end]
            logprob = float(node.run.logprobs[sampled_index])
            turn = trajectory.steps[node.step].turn
            reward = trajectory.turn_rewards.get(turn, 0.0) if at == len(node.run.ids) - 1 else 0.0
            conversation.tokens.append(
                Token(token, trains, logprob, version=version, words_of=role, turn=turn, reward=reward)
            )


Weighting = Literal["none", "samples", "tokens", "both"]
"""Whether the samples of a batch have no advantage, one each, one for each token, or a mixture."""


@given(
    groups,
    st.sampled_from([None, 0, 20]),
    st.sampled_from(get_args(Weighting)),
    st.sampled_from([3, 8, 20, 1000]),
)
def test_a_batch_contains_its_conversations_and_padding(
    members: tuple[Trajectory, ...], spare: int | None, weighting: Weighting, limit: int
) -> None:
    wanted = [conversation for trajectory in members for conversation in expected_branches(trajectory)]
    for conversation in wanted:
        conversation.truncate(limit)
    given_samples = [sample.truncated(limit) for trajectory in members for sample in samples(trajectory)]
    longest = max(len(conversation.tokens) for conversation in wanted)
    weights = None if weighting == "none" else [weight_of(at, branch, weighting) for at, branch in enumerate(wanted)]
    packing = None if spare is None else longest + spare
    batch = collate(given_samples, advantages=weights, packing=packing)

    rows, length = batch.token_ids.shape
    assert length == longest if packing is None else length <= packing
    order = [given_samples.index(sample) for sample in batch.samples]
    assert sorted(order) == list(range(len(wanted)))
    covered = np.zeros((rows, length), bool)
    items = [item for sample in batch.samples for item in sample.images]
    pictures = list(zip(batch.placeholders.tolist(), items, strict=True))
    for number, (row, start, size) in enumerate(batch.spans.tolist()):
        conversation = wanted[order[number]]
        cells = [(row, start + at) for at in range(size)]
        assert not any(covered[cell] for cell in cells)
        for cell in cells:
            covered[cell] = True
        assert (batch.samples[number].rollout, batch.rewards[number].item()) == (
            conversation.rollout,
            conversation.reward,
        )
        assert [read(batch, cell) for cell in cells] == [
            (
                token.id,
                at,
                number,
                token.trains,
                pytest.approx(token.logprob),
                token.image,
                token.version,
                token.words_of,
                token.turn,
                token.reward,
            )
            for at, token in enumerate(conversation.tokens)
        ]
        if batch.advantages is not None and weights is not None:
            assert [batch.advantages[cell].item() for cell in cells] == [
                np.broadcast_to(weights[order[number]], size)[at] if token.trains else 0.0
                for at, token in enumerate(conversation.tokens)
            ]
        mine = [(item["raw_image_id"][:32], offset - start, n) for (s, _, offset, n), item in pictures if s == number]
        assert mine == conversation.images
        assert all(place[1] == row for place, _ in pictures if place[0] == number)
    assert (batch.sample_index.numpy() >= 0).tolist() == covered.tolist()
    assert not batch.mask.numpy()[~covered].any()
    assert (batch.turn_index.numpy()[~covered] == -1).all()
    assert not batch.token_rewards.numpy()[~covered].any()
    assert (batch.advantages is None) == (weights is None)


def weight_of(at: int, conversation: ExpectedBranch, weighting: Weighting) -> float | np.ndarray:
    if weighting == "samples" or (weighting == "both" and at % 2):
        return 0.25 * (at + 1)
    return np.arange(1, len(conversation.tokens) + 1, dtype=np.float32) / 4


def read(batch: Any, cell: tuple[int, int]) -> tuple[Any, ...]:
    version = batch.version_index[cell].item()
    return (
        batch.token_ids[cell].item(),
        batch.position_ids[cell].item(),
        batch.sample_index[cell].item(),
        batch.mask[cell].item(),
        batch.logprobs[cell].item(),
        bool(batch.token_types[cell].item()),
        batch.versions[version] if version >= 0 else None,
        batch.content[cell].item(),
        batch.turn_index[cell].item(),
        batch.token_rewards[cell].item(),
    )


@given(groups)
def test_packing_needs_at_most_half_as_many_rows_and_keeps_the_row_length(members: tuple[Trajectory, ...]) -> None:
    given_samples = [sample for trajectory in members for sample in samples(trajectory)]
    limit = 2 * max(len(sample.token_ids) for sample in given_samples)
    packed = collate(given_samples, packing=limit)
    assert packed.token_ids.shape[0] <= -(-len(given_samples) // 2)
    assert packed.token_ids.shape[1] <= limit


@given(groups, st.sampled_from([None, 0, 20]), st.integers(0, 6))
def test_the_sequences_are_the_samples_and_the_padding_of_all_rows(
    members: tuple[Trajectory, ...], spare: int | None, min_rows: int
) -> None:
    given_samples = [sample for trajectory in members for sample in samples(trajectory)]
    packing = None if spare is None else spare + max(len(sample.token_ids) for sample in given_samples)
    batch = collate(given_samples, packing=packing, min_rows=min_rows)
    rows, length = batch.token_ids.shape
    numbers = batch.sample_index.flatten().tolist()
    starts = [at for at in range(rows * length) if at % length == 0 or numbers[at] != numbers[at - 1]]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [*starts, rows * length]
    assert batch.max_seqlen == max(batch.cu_seqlens.diff().tolist())


def test_a_batch_without_rows_has_no_sequences() -> None:
    batch = collate([])
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.max_seqlen == 0


@given(trajectories())
def test_a_sample_longer_than_a_row_is_refused_by_name(trajectory: Trajectory) -> None:
    (sample, *_) = samples(trajectory)
    limit = len(sample.token_ids) - 1
    with pytest.raises(SampleTooLong, match=rf"g\.0, branch of node .* give `max_length={limit}` to batch_of\(\)"):
        collate([sample], packing=limit)


@given(groups)
def test_a_group_becomes_one_batch_with_the_advantages_of_its_rollouts(members: tuple[Trajectory, ...]) -> None:
    batch = batch_of([Group("g", len(members), members)], estimator=rloo)
    assert batch is not None
    assert batch.advantages is not None
    wanted = dict(zip((m.rollout for m in members), rloo(np.array([m.reward for m in members])).tolist(), strict=True))
    for number, sample in enumerate(batch.samples):
        values = batch.advantages[batch.mask & (batch.sample_index == number)]
        assert values.tolist() == pytest.approx([wanted[sample.rollout]] * len(values))


@given(groups, st.sampled_from([None, 12]), st.sampled_from([None, 60]))
def test_a_group_becomes_one_batch_in_which_an_answer_has_the_advantage_of_its_turn(
    members: tuple[Trajectory, ...], max_length: int | None, packing: int | None
) -> None:
    group = Group("g", len(members), members)
    batch = batch_of([group, group], estimator=rloo, credit="turns", max_length=max_length, packing=packing)
    if batch is None:
        return
    assert batch.advantages is not None
    by_turn = {name: values.tolist() for name, values in turn_advantages_of(group, rloo).items()}
    for cell in zip(*(places.tolist() for places in batch.mask.nonzero(as_tuple=True)), strict=True):
        rollout = batch.samples[int(batch.sample_index[cell])].rollout
        turns = sorted(step.turn for member in members if member.rollout == rollout for step in member.steps)
        expected = by_turn[rollout][turns.index(int(batch.turn_index[cell]))]
        assert batch.advantages[cell].item() == pytest.approx(expected)
    assert not batch.advantages[~batch.mask].any()


@given(groups)
def test_without_turn_rewards_both_kinds_of_credit_make_the_same_batch(members: tuple[Trajectory, ...]) -> None:
    group = Group("g", len(members), tuple(replace(member, turn_rewards={}) for member in members))
    outcome, turns = batch_of([group]), batch_of([group], credit="turns")
    assert outcome is not None
    assert turns is not None
    assert outcome.advantages is not None
    assert turns.advantages is not None
    assert torch.equal(outcome.advantages, turns.advantages)


def test_an_unknown_credit_is_refused() -> None:
    credit: Any = "turn"
    with pytest.raises(ValueError, match="credit is 'turn'; expected one of 'outcome', 'turns'"):
        batch_of([], credit=credit)


@given(trajectories(), st.sampled_from([-1, 1]))
def test_an_array_of_advantages_that_is_not_aligned_is_refused_by_name(trajectory: Trajectory, surplus: int) -> None:
    (sample, *_) = samples(trajectory)
    with pytest.raises(ValueError, match=r"g\.0, branch of node .*: the advantages have the shape"):
        collate([sample], advantages=[np.zeros(len(sample.token_ids) + surplus)])


@given(groups, st.integers(1, 20))
def test_a_truncated_group_trains_the_tokens_that_are_left(members: tuple[Trajectory, ...], limit: int) -> None:
    batch = batch_of([Group("g", len(members), members)], max_length=limit, packing=limit)
    kept = [sample.truncated(limit) for trajectory in members for sample in samples(trajectory)]
    trained = sum(int(sample.mask.sum()) for sample in kept)
    assert (0 if batch is None else int(batch.mask.sum())) == trained


def test_a_failed_group_makes_no_batch() -> None:
    failed = Trajectory("run", "Env", "g", "g.0", 1, RolloutStatus.FAILED, None)
    assert batch_of([Group("g", 1, (failed,))]) is None


@given(trajectories(), st.lists(st.sampled_from([(), (1,), (2, 3)]), min_size=1), st.sampled_from([None, 100]))
def test_logits_of_banned_tokens_are_minus_infinity_in_the_rows_of_their_samples_only(
    trajectory: Trajectory, bans: list[tuple[int, ...]], packing: int | None
) -> None:
    given_samples = [replace(sample, banned_ids=bans[at % len(bans)]) for at, sample in enumerate(samples(trajectory))]
    batch = collate(given_samples, packing=packing)
    logits = torch.zeros((*batch.token_ids.shape, 5))
    without = batch.without_banned(logits)
    for sample, (row, start, length) in zip(batch.samples, batch.spans.tolist(), strict=True):
        banned = without[row, start : start + length] == float("-inf")
        expected = torch.zeros(5, dtype=torch.bool)
        expected[list(sample.banned_ids)] = True
        assert (banned == expected).all()
    assert (logits == 0).all()


@given(trajectories())
def test_a_batch_moves_to_a_device_with_all_of_its_tensors(trajectory: Trajectory) -> None:
    moved = collate(samples(trajectory)).to("meta")
    assert moved.token_ids.device == torch.device("meta")
    assert moved.spans.device == torch.device("meta")
    assert moved.turn_index.device == moved.token_rewards.device == torch.device("meta")


def test_reading_trajectories_does_not_import_torch() -> None:
    code = "import sys, rollout.trainer; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
