"""The checker: a valid trajectory has no violation, and each violation is named exactly."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from renderers_adapter.tokens import ImageSlot, TokenRun, as_logical_ids
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.kinds import NamedReward
from rollout.testing import embedded_policy, play
from rollout.trainer import Trajectory, check, samples
from rollout.trainer.check import check_sample

CHECKER = sys.modules[check.__module__]
LOOK = ColorCodewordSettings(image_size=64)


def ask(text: str, *colors: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": draw_square(color, LOOK, seed=color)}} for color in colors]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


class Branching(Environment):
    """Nodes 0-1 are the first turn, 2-3 the second, 4-5 a fork of it, 6-7 a conversation of its own."""

    async def run(self, task: Task, model: Model) -> Score:
        begin = [ask("Two squares.", "red", "blue")]
        begin.append((await model.chat(begin)).message)
        await model.chat([*begin, ask("And red again?", "red")])
        await model.chat([*begin, ask("And green?", "green")])
        await model.chat([ask("Blue, by itself.", "blue")])
        return Score(1.0)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    async def branching() -> Trajectory:
        async with embedded_policy(tmp_path_factory.mktemp("images")) as policy:
            return (await play(Branching(EnvironmentSettings()), Task("0", 0, 1), policy=policy)).trajectory

    return asyncio.run(branching())


def with_node(trajectory: Trajectory, at: int, **changes: Any) -> Trajectory:
    nodes = list(trajectory.nodes)
    nodes[at] = replace(nodes[at], **changes)
    return replace(trajectory, nodes=tuple(nodes))


def with_run(trajectory: Trajectory, node: int, **changes: Any) -> Trajectory:
    return with_node(trajectory, node, run=replace(trajectory.nodes[node].run, **changes))


def only_slot(trajectory: Trajectory, node: int) -> ImageSlot:
    (slot,) = trajectory.nodes[node].run.images
    return slot


def with_slot(trajectory: Trajectory, node: int, **changes: Any) -> Trajectory:
    return with_run(trajectory, node, images=(replace(only_slot(trajectory, node), **changes),))


def with_logprobs(trajectory: Trajectory, node: int, change: Callable[[Any], Any]) -> Trajectory:
    return with_run(trajectory, node, logprobs=change(trajectory.nodes[node].run.logprobs))


def with_role(trajectory: Trajectory, node: int, role: str) -> Trajectory:
    return with_node(trajectory, node, message={**trajectory.nodes[node].message, "role": role})


def with_step(trajectory: Trajectory, at: int, **changes: Any) -> Trajectory:
    steps = list(trajectory.steps)
    steps[at] = replace(steps[at], **changes)
    return replace(trajectory, steps=tuple(steps))


def with_descriptor(trajectory: Trajectory, **changes: Any) -> Trajectory:
    """Change fields of the descriptor of the image in turn 2; the value None removes a field."""
    (mm_hash,) = trajectory.steps[2].images
    fields = {**trajectory.images[mm_hash], **changes}
    item = {key: value for key, value in fields.items() if value is not None}
    return replace(trajectory, images={**trajectory.images, mm_hash: item})


def with_another_token(trajectory: Trajectory, node: int) -> Trajectory:
    ids = trajectory.nodes[node].run.ids.copy()
    ids[-2] += 1
    return with_run(trajectory, node, ids=as_logical_ids(ids))


def without_last_token(trajectory: Trajectory, node: int) -> Trajectory:
    ids = trajectory.nodes[node].run.ids[:-1]
    return with_run(trajectory, node, ids=as_logical_ids(ids), sampled_from=len(ids))


def without_samples(trajectory: Trajectory, node: int) -> Trajectory:
    ids = trajectory.nodes[node].run.ids
    return with_node(trajectory, node, run=TokenRun(ids, len(ids)))


def with_images_swapped(trajectory: Trajectory) -> Trajectory:
    run, message = trajectory.nodes[0].run, trajectory.nodes[0].message
    one, two = run.images
    content = [message["content"][1], message["content"][0], *message["content"][2:]]
    swapped = (replace(two, offset=one.offset), replace(one, offset=two.offset))
    return with_node(trajectory, 0, run=replace(run, images=swapped), message={**message, "content": content})


def with_versions_out_of_order(trajectory: Trajectory) -> Trajectory:
    end = len(trajectory.nodes[3].run.logprobs)
    spans = VersionSpan("0", 0, end), VersionSpan("1", end, 0), VersionSpan("2", 0, end)
    return with_step(trajectory, 1, versions=spans)


def with_needless_descriptor(trajectory: Trajectory) -> Trajectory:
    (item,) = trajectory.steps[2].images.values()
    return with_step(trajectory, 2, images={**trajectory.steps[2].images, "f" * 32: item})


def with_shared_node_doubled(trajectory: Trajectory) -> Trajectory:
    """Put node 2 at the place of node 4, as if turn 2 had not found it."""
    node, step = trajectory.nodes[2], trajectory.steps[1]
    doubled = with_node(trajectory, 4, message=node.message, run=node.run)
    return with_step(doubled, 2, images={}, prompt_digest=step.prompt_digest, prompt_length=step.prompt_length)


ONE_TOKEN = SamplingMask(np.ones(1, np.int32), np.ones(1, np.int32))
THREE_TOKENS = RoutedExperts(0, np.zeros((3, 2, 2), np.uint8))

BROKEN: dict[str, tuple[Callable[[Trajectory], Trajectory], int, str]] = {
    "another token": (lambda t: with_another_token(t, 2), 1, "turn 1"),
    "another sampled token": (lambda t: with_another_token(t, 5), 1, "turn 2, node 5"),
    "a missing token": (lambda t: without_last_token(t, 4), 1, "turn 2"),
    "another length of an image": (lambda t: with_slot(t, 6, length=only_slot(t, 6).length + 1), 1, "turn 3"),
    "a missing log-prob": (lambda t: with_logprobs(t, 3, lambda found: found[:-1]), 1, "turn 1, node 3"),
    "a log-prob above zero": (
        lambda t: with_logprobs(t, 3, lambda found: found + np.float32(0.5)),
        1,
        "turn 1, node 3",
    ),
    "another log-prob": (lambda t: with_logprobs(t, 1, lambda found: found - np.float32(0.125)), 1, "turn 0, node 1"),
    "log-probs of -9999": (
        lambda t: with_logprobs(t, 3, lambda found: np.full_like(found, -9999.0)),
        1,
        "turn 1, node 3",
    ),
    "a sampled banned token": (
        lambda t: with_step(t, 1, banned_ids=(int(t.nodes[3].run.ids[-1]),)),
        1,
        "turn 1, node 3",
    ),
    "other bans than in turn 0": (
        lambda t: with_step(t, 1, banned_ids=t.steps[0].banned_ids[1:]),
        11,
        "turn 1, node 3",
    ),
    "versions with a gap": (lambda t: with_step(t, 1, versions=(VersionSpan("0", 1, 2),)), 1, "turn 1, node 3"),
    "versions out of order": (with_versions_out_of_order, 1, "turn 1, node 3"),
    "an answer that was not sampled": (lambda t: without_samples(t, 5), 1, "turn 2, node 5"),
    "half a digest": (lambda t: with_step(t, 2, prompt_digest=t.steps[2].prompt_digest[:8]), 1, "turn 2"),
    "a sampled user message": (lambda t: with_role(t, 3, "user"), 1, "turn 1, node 3"),
    "swapped images": (with_images_swapped, 2, "turn 0"),
    "another image than in the message": (lambda t: with_slot(t, 4, hash="f" * 32), 2, "turn 2, node 4"),
    "a missing descriptor": (lambda t: with_step(t, 2, images={}), 2, "turn 2, node 4"),
    "a descriptor of another image": (lambda t: with_descriptor(t, raw_image_id=f"{'f' * 64}.png"), 2, "turn 2, image"),
    "an image at the wrong place": (lambda t: with_slot(t, 2, offset=only_slot(t, 2).offset + 1), 3, "turn 1, node 2"),
    "pixels in a descriptor": (lambda t: with_descriptor(t, payload={"pixel_values": [1.0]}), 4, "turn 2, image"),
    "a descriptor with two sources": (
        lambda t: with_descriptor(t, raw_uri="data:image/png;base64,AAAA"),
        4,
        "turn 2, image",
    ),
    "a descriptor without a source": (lambda t: with_descriptor(t, raw_image_id=None), 4, "turn 2, image"),
    "a descriptor that is sent twice": (
        lambda t: with_step(t, 2, images={**t.steps[0].images, **t.steps[2].images}),
        5,
        "turn 2, image",
    ),
    "a needless descriptor": (with_needless_descriptor, 5, "turn 2, image ffff"),
    "a turn that is recorded twice": (lambda t: with_step(t, 2, turn=1), 5, "turn 1"),
    "a shared node that is doubled": (with_shared_node_doubled, 6, "node 4"),
    "a node on another branch": (lambda t: with_node(t, 4, parent=3), 6, "turn 2, node 4"),
    "a lost step": (lambda t: replace(t, steps=(t.steps[0], *t.steps[2:])), 6, "turn 2"),
    "a node without a step": (lambda t: replace(t, steps=t.steps[:-1]), 6, "node 6"),
    "an unknown role": (lambda t: with_role(t, 2, "critic"), 11, "turn 1, node 2"),
    "content outside of its message": (
        lambda t: with_node(t, 2, content=((0, len(t.nodes[2].run.ids) + 1),)),
        11,
        "turn 1, node 2",
    ),
    "a mask of other tokens": (lambda t: with_step(t, 1, sampling_mask=ONE_TOKEN), 11, "turn 1, node 3"),
    "experts of other tokens": (lambda t: with_step(t, 1, routed_experts=THREE_TOKENS), 11, "turn 1, node 3"),
}


@pytest.mark.parametrize(("damage", "invariant", "where"), BROKEN.values(), ids=BROKEN)
def test_a_violation_is_named_with_its_invariant_and_place(
    valid: Trajectory, damage: Callable[[Trajectory], Trajectory], invariant: int, where: str
) -> None:
    first, *_ = check(damage(valid))
    assert (first.invariant, first.rollout) == (invariant, valid.rollout)
    assert first.where.startswith(where)


def test_a_valid_trajectory_has_no_violation(valid: Trajectory) -> None:
    assert check(valid) == []
    assert len(valid.leaves()) == 3


def test_a_turn_may_ban_nothing_and_a_branch_has_the_bans_that_all_its_turns_share(valid: Trajectory) -> None:
    refused = with_step(valid, 1, banned_ids=())
    assert check(refused) == []
    banned_ids = tuple(sorted(valid.steps[0].banned_ids))
    assert {sample.leaf: sample.banned_ids for sample in samples(refused)} == {3: (), 5: banned_ids, 7: banned_ids}


def test_an_error_is_reported_only_for_the_first_turn_that_has_it(valid: Trajectory) -> None:
    (only,) = check(with_another_token(valid, 0))
    assert (only.invariant, only.where) == (1, "turn 0")


def test_a_sampled_token_that_trains_in_no_sample_is_named(valid: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = samples(valid)[:-1]
    monkeypatch.setattr(CHECKER, "samples", lambda _: lost)
    (violation,) = check(valid)
    assert (violation.invariant, violation.where) == (6, "node 7")


def test_a_branch_with_the_images_of_another_branch_is_named(
    valid: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = samples(valid)
    marks = tuple(replace(mark, hash=second.placeholders[-1].hash) for mark in first.placeholders)
    monkeypatch.setattr(CHECKER, "samples", lambda _: [replace(first, placeholders=marks), second, third])
    (violation,) = check(valid)
    assert (violation.invariant, violation.where) == (6, "sample of node 3")


@pytest.mark.parametrize("name", ["turn_index", "token_rewards"])
def test_tokens_with_the_turn_or_the_reward_of_another_turn_are_named(
    valid: Trajectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rewarded = replace(valid, turn_rewards={0: 0.5, 2: -1.0})
    assert check(rewarded) == []
    first, second, third = samples(rewarded)
    values = getattr(second, name).copy()
    values[second.turn_index == 0] = 1
    monkeypatch.setattr(CHECKER, "samples", lambda _: [first, replace(second, **{name: values}), third])
    (violation,) = check(rewarded)
    assert (violation.invariant, violation.where) == (11, "sample of node 5, node 1")


def test_a_reward_at_a_token_that_was_not_sampled_is_named(valid: Trajectory) -> None:
    sample = samples(valid)[0]
    (violation,) = check_sample(replace(sample, token_rewards=np.ones_like(sample.token_rewards)))
    assert violation.invariant == 11


@pytest.mark.parametrize(("reward", "is_valid"), [(0.3 - 1e-9, True), (0.3, True), (0.31, False), (None, False)])
def test_a_reward_is_the_weighted_sum_of_its_parts(valid: Trajectory, reward: float | None, is_valid: bool) -> None:
    rewards = {"answer": NamedReward(1.0, 0.1), "format": NamedReward(2.0, 0.2), "length": NamedReward(-0.2, 1.0)}
    found = [
        (violation.invariant, violation.where) for violation in check(replace(valid, reward=reward, rewards=rewards))
    ]
    assert found == ([] if is_valid else [(8, "score")])


def test_a_sample_cut_to_any_length_is_valid(valid: Trajectory) -> None:
    for sample in samples(valid):
        with pytest.raises(ValueError, match="cut to -1 tokens"):
            sample.truncated(-1)
        for limit in range(len(sample.token_ids) + 1):
            cut = sample.truncated(limit)
            assert check_sample(cut) == []
            assert len(cut.token_ids) <= limit


def test_a_sample_whose_image_is_cut_or_whose_arrays_differ_is_named(valid: Trajectory) -> None:
    sample = samples(valid)[0]
    end = sample.placeholders[0].offset + 3
    names = ("token_ids", "mask", "logprobs", "token_types", "version_index", "content", "turn_index", "token_rewards")
    cut = replace(sample, **{name: getattr(sample, name)[:end] for name in names})
    assert {violation.invariant for violation in check_sample(cut)} == {11}
    assert [violation.invariant for violation in check_sample(replace(sample, mask=sample.mask[1:]))] == [11]
    assert [violation.invariant for violation in check_sample(replace(sample, images=sample.images[1:]))] == [11]
    moved = tuple(replace(mark, offset=mark.offset + 1) for mark in sample.placeholders)
    assert [violation.invariant for violation in check_sample(replace(sample, placeholders=moved))] == [3]


def test_content_masks_show_which_role_said_a_token(valid: Trajectory) -> None:
    sample = samples(valid)[0]
    images = sample.token_types == 1
    assert sample.content_mask("user")[images].all()
    assert (sample.content_mask("assistant") >= sample.mask).all()
    assert not (sample.content_mask("user") & sample.content_mask("assistant")).any()
    assert not sample.content_mask("system", "tool").any()
    assert 0 < (~sample.content_mask("user", "assistant")).sum() < len(sample.token_ids)
