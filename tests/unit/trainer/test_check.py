"""The checker: a sound trajectory has no violation, and whatever is broken in it is named exactly."""

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
def sound(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    async def branching() -> Trajectory:
        async with embedded_policy(tmp_path_factory.mktemp("images")) as policy:
            return (await play(Branching(EnvironmentSettings()), Task("0", 0, 1), policy=policy)).trajectory

    return asyncio.run(branching())


def with_run(trajectory: Trajectory, at: int, run: TokenRun) -> Trajectory:
    nodes = list(trajectory.nodes)
    nodes[at] = replace(nodes[at], run=run)
    return replace(trajectory, nodes=tuple(nodes))


def with_step(trajectory: Trajectory, at: int, **changes: Any) -> Trajectory:
    steps = list(trajectory.steps)
    steps[at] = replace(steps[at], **changes)
    return replace(trajectory, steps=tuple(steps))


def with_another_token(trajectory: Trajectory, node: int) -> Trajectory:
    run = trajectory.nodes[node].run
    ids = run.ids.copy()
    ids[-2] += 1
    return with_run(trajectory, node, replace(run, ids=as_logical_ids(ids)))


def another_token(trajectory: Trajectory) -> Trajectory:
    return with_another_token(trajectory, 2)


def a_token_less(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[4].run
    return with_run(trajectory, 4, replace(run, ids=as_logical_ids(run.ids[:-1]), sampled_from=len(run.ids) - 1))


def a_length_of_an_image(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[6].run
    (slot,) = run.images
    return with_run(trajectory, 6, replace(run, images=(replace(slot, length=slot.length + 1),)))


def a_logprob_missing(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[3].run
    return with_run(trajectory, 3, replace(run, logprobs=run.logprobs[:-1]))


def a_logprob_above_zero(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[3].run
    return with_run(trajectory, 3, replace(run, logprobs=run.logprobs + np.float32(0.5)))


def a_banned_token_sampled(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 1, banned_ids=(int(trajectory.nodes[3].run.ids[-1]),))


def other_bans_than_in_the_first_turn(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 1, banned_ids=trajectory.steps[0].banned_ids[1:])


def versions_with_a_gap(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 1, versions=(VersionSpan("0", 1, 2),))


def an_answer_not_sampled(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[5].run
    return with_run(trajectory, 5, TokenRun(run.ids, len(run.ids)))


def images_swapped(trajectory: Trajectory) -> Trajectory:
    run, message = trajectory.nodes[0].run, trajectory.nodes[0].message
    one, two = run.images
    content = [message["content"][1], message["content"][0], *message["content"][2:]]
    swapped = (replace(two, offset=one.offset), replace(one, offset=two.offset))
    nodes = list(trajectory.nodes)
    nodes[0] = replace(nodes[0], run=replace(run, images=swapped), message={**message, "content": content})
    return replace(trajectory, nodes=tuple(nodes))


def another_image_than_the_message_says(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[4].run
    (slot,) = run.images
    return with_run(trajectory, 4, replace(run, images=(ImageSlot("f" * 32, slot.offset, slot.length),)))


def a_descriptor_missing(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 2, images={})


def a_place_off_by_one(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[2].run
    (slot,) = run.images
    return with_run(trajectory, 2, replace(run, images=(replace(slot, offset=slot.offset + 1),)))


def pixels_in_a_descriptor(trajectory: Trajectory) -> Trajectory:
    (mm_hash,) = trajectory.steps[2].images
    return replace(trajectory, images={**trajectory.images, mm_hash: {"payload": {"pixel_values": [1.0]}}})


def a_descriptor_sent_twice(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 2, images={**trajectory.steps[0].images, **trajectory.steps[2].images})


def with_node(trajectory: Trajectory, at: int, **changes: Any) -> Trajectory:
    nodes = list(trajectory.nodes)
    nodes[at] = replace(nodes[at], **changes)
    return replace(trajectory, nodes=tuple(nodes))


def with_descriptor(trajectory: Trajectory, **changes: Any) -> Trajectory:
    """Change fields of the descriptor of the image in turn 2; the value None removes a field."""
    (mm_hash,) = trajectory.steps[2].images
    fields = {**trajectory.images[mm_hash], **changes}
    item = {key: value for key, value in fields.items() if value is not None}
    return replace(trajectory, images={**trajectory.images, mm_hash: item})


def a_sampled_token_that_nothing_was_built_upon(trajectory: Trajectory) -> Trajectory:
    return with_another_token(trajectory, 5)


def another_logprob(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[1].run
    return with_run(trajectory, 1, replace(run, logprobs=run.logprobs - np.float32(0.125)))


def no_logprob_at_all(trajectory: Trajectory) -> Trajectory:
    run = trajectory.nodes[3].run
    return with_run(trajectory, 3, replace(run, logprobs=np.full_like(run.logprobs, -9999.0)))


def versions_out_of_order(trajectory: Trajectory) -> Trajectory:
    end = len(trajectory.nodes[3].run.logprobs)
    spans = VersionSpan("0", 0, end), VersionSpan("1", end, 0), VersionSpan("2", 0, end)
    return with_step(trajectory, 1, versions=spans)


def half_a_digest(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 2, prompt_digest=trajectory.steps[2].prompt_digest[:8])


def a_user_who_was_sampled(trajectory: Trajectory) -> Trajectory:
    return with_node(trajectory, 3, message={**trajectory.nodes[3].message, "role": "user"})


def words_of_nobody(trajectory: Trajectory) -> Trajectory:
    return with_node(trajectory, 2, message={**trajectory.nodes[2].message, "role": "critic"})


def words_outside_of_their_message(trajectory: Trajectory) -> Trajectory:
    return with_node(trajectory, 2, content=((0, len(trajectory.nodes[2].run.ids) + 1),))


def a_mask_of_other_tokens(trajectory: Trajectory) -> Trajectory:
    ones = np.ones(1, np.int32)
    return with_step(trajectory, 1, sampling_mask=SamplingMask(ones, ones))


def experts_of_other_tokens(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 1, routed_experts=RoutedExperts(0, np.zeros((3, 2, 2), np.uint8)))


def a_descriptor_of_another_image(trajectory: Trajectory) -> Trajectory:
    return with_descriptor(trajectory, raw_image_id=f"{'f' * 64}.png")


def a_descriptor_with_two_sources(trajectory: Trajectory) -> Trajectory:
    return with_descriptor(trajectory, raw_uri="data:image/png;base64,AAAA")


def a_descriptor_without_a_source(trajectory: Trajectory) -> Trajectory:
    return with_descriptor(trajectory, raw_image_id=None)


def a_descriptor_that_nobody_needs(trajectory: Trajectory) -> Trajectory:
    (item,) = trajectory.steps[2].images.values()
    return with_step(trajectory, 2, images={**trajectory.steps[2].images, "f" * 32: item})


def a_turn_recorded_twice(trajectory: Trajectory) -> Trajectory:
    return with_step(trajectory, 2, turn=1)


def a_node_on_another_branch(trajectory: Trajectory) -> Trajectory:
    return with_node(trajectory, 4, parent=3)


def a_step_lost(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, steps=(trajectory.steps[0], *trajectory.steps[2:]))


def a_node_of_no_step(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, steps=trajectory.steps[:-1])


def a_shared_node_doubled(trajectory: Trajectory) -> Trajectory:
    """Node 2 stands at the place of node 4 once more, as if a turn had not found it."""
    first, second = trajectory.nodes[2], trajectory.nodes[4]
    nodes = list(trajectory.nodes)
    nodes[4] = replace(second, message=first.message, run=first.run)
    steps = list(trajectory.steps)
    steps[2] = replace(steps[2], images={}, prompt_digest=steps[1].prompt_digest, prompt_length=steps[1].prompt_length)
    return replace(trajectory, nodes=tuple(nodes), steps=tuple(steps))


@pytest.mark.parametrize(
    ("broken", "invariant", "where"),
    [
        (another_token, 1, "turn 1"),
        (a_token_less, 1, "turn 2"),
        (a_length_of_an_image, 1, "turn 3"),
        (a_logprob_missing, 1, "turn 1, node 3"),
        (a_logprob_above_zero, 1, "turn 1, node 3"),
        (a_banned_token_sampled, 1, "turn 1, node 3"),
        (other_bans_than_in_the_first_turn, 11, "turn 1, node 3"),
        (versions_with_a_gap, 1, "turn 1, node 3"),
        (an_answer_not_sampled, 1, "turn 2, node 5"),
        (images_swapped, 2, "turn 0"),
        (another_image_than_the_message_says, 2, "turn 2, node 4"),
        (a_descriptor_missing, 2, "turn 2, node 4"),
        (a_place_off_by_one, 3, "turn 1, node 2"),
        (pixels_in_a_descriptor, 4, "turn 2, image"),
        (a_descriptor_sent_twice, 5, "turn 2, image"),
        (a_shared_node_doubled, 6, "node 4"),
        (a_sampled_token_that_nothing_was_built_upon, 1, "turn 2, node 5"),
        (another_logprob, 1, "turn 0, node 1"),
        (no_logprob_at_all, 1, "turn 1, node 3"),
        (versions_out_of_order, 1, "turn 1, node 3"),
        (half_a_digest, 1, "turn 2"),
        (a_user_who_was_sampled, 1, "turn 1, node 3"),
        (a_descriptor_of_another_image, 2, "turn 2, image"),
        (a_descriptor_with_two_sources, 4, "turn 2, image"),
        (a_descriptor_without_a_source, 4, "turn 2, image"),
        (a_descriptor_that_nobody_needs, 5, "turn 2, image ffff"),
        (a_turn_recorded_twice, 5, "turn 1"),
        (a_node_on_another_branch, 6, "turn 2, node 4"),
        (a_step_lost, 6, "turn 2"),
        (a_node_of_no_step, 6, "node 6"),
        (words_of_nobody, 11, "turn 1, node 2"),
        (words_outside_of_their_message, 11, "turn 1, node 2"),
        (a_mask_of_other_tokens, 11, "turn 1, node 3"),
        (experts_of_other_tokens, 11, "turn 1, node 3"),
    ],
)
def test_what_is_broken_is_named(
    sound: Trajectory, broken: Callable[[Trajectory], Trajectory], invariant: int, where: str
) -> None:
    first, *_ = check(broken(sound))
    assert (first.invariant, first.rollout) == (invariant, sound.rollout)
    assert first.where.startswith(where)


def test_a_sound_trajectory_has_no_violation(sound: Trajectory) -> None:
    assert check(sound) == []
    assert len(sound.leaves()) == 3


def test_a_turn_may_ban_nothing_and_its_branch_bans_only_what_all_of_its_turns_do(sound: Trajectory) -> None:
    refused = with_step(sound, 1, banned_ids=())
    assert check(refused) == []
    banned_ids = tuple(sorted(sound.steps[0].banned_ids))
    assert {sample.leaf: sample.banned_ids for sample in samples(refused)} == {3: (), 5: banned_ids, 7: banned_ids}


def test_a_turn_is_not_blamed_for_what_it_inherits(sound: Trajectory) -> None:
    run = sound.nodes[0].run
    ids = run.ids.copy()
    ids[-2] += 1
    (only,) = check(with_run(sound, 0, replace(run, ids=as_logical_ids(ids))))
    assert (only.invariant, only.where) == (1, "turn 0")


def test_a_sampled_token_that_trains_in_no_sample_is_named(sound: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = samples(sound)[:-1]
    monkeypatch.setattr(CHECKER, "samples", lambda _: lost)
    (violation,) = check(sound)
    assert (violation.invariant, violation.where) == (6, "node 7")


def test_a_branch_with_another_branchs_images_is_named(sound: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = samples(sound)
    marks = tuple(replace(mark, hash=second.placeholders[-1].hash) for mark in first.placeholders)
    monkeypatch.setattr(CHECKER, "samples", lambda _: [replace(first, placeholders=marks), second, third])
    (violation,) = check(sound)
    assert (violation.invariant, violation.where) == (6, "sample of node 3")


@pytest.mark.parametrize("name", ["turn_index", "token_rewards"])
def test_tokens_with_the_turn_or_the_reward_of_another_turn_are_named(
    sound: Trajectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rewarded = replace(sound, turn_rewards={0: 0.5, 2: -1.0})
    assert check(rewarded) == []
    first, second, third = samples(rewarded)
    values = getattr(second, name).copy()
    values[second.turn_index == 0] = 1
    monkeypatch.setattr(CHECKER, "samples", lambda _: [first, replace(second, **{name: values}), third])
    (violation,) = check(rewarded)
    assert (violation.invariant, violation.where) == (11, "sample of node 5, node 1")


def test_a_reward_at_a_token_that_nobody_sampled_is_named(sound: Trajectory) -> None:
    sample = samples(sound)[0]
    (violation,) = check_sample(replace(sample, token_rewards=np.ones_like(sample.token_rewards)))
    assert violation.invariant == 11


@pytest.mark.parametrize(("reward", "is_sound"), [(0.3 - 1e-9, True), (0.3, True), (0.31, False), (None, False)])
def test_a_reward_is_the_weighted_sum_of_its_parts(sound: Trajectory, reward: float | None, is_sound: bool) -> None:
    rewards = {"answer": NamedReward(1.0, 0.1), "format": NamedReward(2.0, 0.2), "length": NamedReward(-0.2, 1.0)}
    found = [
        (violation.invariant, violation.where) for violation in check(replace(sound, reward=reward, rewards=rewards))
    ]
    assert found == ([] if is_sound else [(8, "score")])


def test_a_truncated_sample_is_aligned_wherever_it_is_cut(sound: Trajectory) -> None:
    for sample in samples(sound):
        with pytest.raises(ValueError, match="cut to -1 tokens"):
            sample.truncated(-1)
        for limit in range(len(sample.token_ids) + 1):
            cut = sample.truncated(limit)
            assert check_sample(cut) == []
            assert len(cut.token_ids) <= limit


def test_a_sample_whose_image_is_cut_or_whose_arrays_differ_is_named(sound: Trajectory) -> None:
    sample = samples(sound)[0]
    end = sample.placeholders[0].offset + 3
    names = ("token_ids", "mask", "logprobs", "token_types", "version_index", "content", "turn_index", "token_rewards")
    cut = replace(sample, **{name: getattr(sample, name)[:end] for name in names})
    assert {violation.invariant for violation in check_sample(cut)} == {11}
    assert [violation.invariant for violation in check_sample(replace(sample, mask=sample.mask[1:]))] == [11]
    assert [violation.invariant for violation in check_sample(replace(sample, images=sample.images[1:]))] == [11]
    moved = tuple(replace(mark, offset=mark.offset + 1) for mark in sample.placeholders)
    assert [violation.invariant for violation in check_sample(replace(sample, placeholders=moved))] == [3]


def test_content_masks_tell_whose_words_a_token_is(sound: Trajectory) -> None:
    sample = samples(sound)[0]
    images = sample.token_types == 1
    assert sample.content_mask("user")[images].all()
    assert (sample.content_mask("assistant") >= sample.mask).all()
    assert not (sample.content_mask("user") & sample.content_mask("assistant")).any()
    assert not sample.content_mask("system", "tool").any()
    assert 0 < (~sample.content_mask("user", "assistant")).sum() < len(sample.token_ids)
